"""A copy of a run up to a finished step, which goes on from there with other settings.

    python -m benchmarks.end_to_end.branch RUN --step NAME --config CHANGES.yaml --out FOLDER

NAME: the last step that is taken over, as `RUN/state/steps.json` has it. CHANGES: settings by the names of
`RUN/config.yaml`, which are the new run's where they are not RUN's. They must not be of a step that is taken over: what
a step was given is compared, its own settings are not. All models are copied; those of later steps are made anew. Then,
for the run `chat`,

    instructrl run chat --config FOLDER/config.yaml --out FOLDER
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.core.tables import command
from instructrl.runs.folder import CONFIG_FILE
from instructrl.runs.journal import STATE
from instructrl.trainers.checkpoints import json_digest

_STEPS = Path(STATE) / "steps.json"


def changed(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the changes in them. Raises ValueError for one that is not there."""
    unknown = sorted(set(changes) - set(settings))
    if unknown:
        raise ValueError(f"found {', '.join(unknown)}, accepted are {', '.join(settings)}")
    inner = {name: value for name, value in changes.items() if isinstance(value, Mapping)}
    return {**settings, **changes, **{name: changed(settings[name], value) for name, value in inner.items()}}


def branch(run: Path, step: str, changes: Mapping[str, Any], out: Path) -> None:
    """Raises ValueError for a step that RUN has not finished, FileExistsError where OUT is."""
    steps = json.loads((run / _STEPS).read_text(encoding="utf-8"))["steps"]
    names = [entry["name"] for entry in steps]
    if step not in names:
        raise ValueError(f"step: found {step}, accepted are {', '.join(names)}")
    kept = steps[: names.index(step) + 1]
    settings = changed(yaml.safe_load((run / CONFIG_FILE).read_text(encoding="utf-8")), changes)
    (out / STATE).mkdir(parents=True)
    shutil.copytree(run / "models", out / "models")
    (out / "metrics.jsonl").write_bytes((run / "metrics.jsonl").read_bytes()[: kept[-1]["metrics_bytes"]])
    (out / _STEPS).write_text(json.dumps({"steps": kept, "sha256": json_digest(kept)}), encoding="utf-8")
    (out / CONFIG_FILE).write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def main() -> None:
    arguments = command(__doc__, run_=Path, step=True, config=True, out=True)
    changes = yaml.safe_load(Path(arguments.config).read_text(encoding="utf-8"))
    branch(arguments.run, arguments.step, changes, Path(arguments.out))


if __name__ == "__main__":
    main()
