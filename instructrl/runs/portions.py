"""What of an evaluation is done, so that one that was stopped goes on from there.

    FOLDER/state/evaluation/NAME.json    what a portion gave, what it was of, and a checksum

Nothing is made from a portion but results: unlike a step of training, one that is damaged, or of other models or
prompts, is done again.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from instructrl import distributed, durable
from instructrl.runs.journal import STATE
from instructrl.trainers.checkpoints import fingerprint, json_digest
from instructrl.trainers.log import RunLog


class Portions:
    """Those of one model. name: of its files. given: the networks, prompts and settings that decide what a portion
    gives, as `fingerprint` takes them."""

    def __init__(self, folder: Path, log: RunLog, name: str, *given: Any) -> None:
        self._folder, self._log, self._name = folder / STATE / "evaluation", log, name
        self._given = fingerprint(*given)

    def once(self, portion: str, work: Callable[[], Any]) -> Any:
        """What the work gives, which JSON can hold, and which was read back; carried out where it is not there yet."""
        path = self._folder / f"{self._name}-{portion}.json"
        found = distributed.from_main(lambda: self._read(path))
        if found is None:
            value = work()
            found = distributed.from_main(lambda: self._write(path, value))
        distributed.leave_if_wished()
        return found["value"]

    def _write(self, path: Path, value: Any) -> dict[str, Any]:
        content = {"given": self._given, "value": value}
        text = json.dumps({"portion": content, "sha256": json_digest(content)})
        durable.make_folder(path.parent)
        durable.write_text(path, text + "\n")
        return json.loads(text)["portion"]

    def _read(self, path: Path) -> dict[str, Any] | None:
        """None where there is none that can be used."""
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            portion = content["portion"]
            good = content["sha256"] == json_digest(portion)
        except (ValueError, KeyError, TypeError):
            good, portion = False, {}
        if not good:
            self._log.warn(f"{path}: found it damaged. This part of the evaluation is done again")
            return None
        if portion["given"] != self._given:
            self._log.say(f"{path}: of other models, prompts or settings. This part of the evaluation is done again")
            return None
        return portion
