"""Files that run code when they are read carelessly: each would write a marker, a file whose absence is the proof.

No file here needs this module to go off, as none of an attacker would.
"""

import json
from pathlib import Path
from typing import Any

import torch

KINDS = ("pickle", "torch")


class _Bomb:
    """What unpickling turns into `open(marker, "w")`."""

    def __init__(self, marker: Path) -> None:
        self._marker = str(marker)

    def __reduce__(self):
        return open, (self._marker, "w")


def write_hostile_pickle(path: Path, marker: Path, kind: str = "torch") -> None:
    """A file of any name that writes `marker` when it is unpickled.

    kind: "torch" is an archive as `torch.save` makes them, "pickle" a bare pickle.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "torch":
        torch.save({"weight": _Bomb(marker)}, path)
    else:
        path.write_bytes(f"cio\nopen\n(V{marker}\nVw\ntR.".encode("ascii"))


def write_custom_code(folder: Path, marker: Path, *, model_type: str | None, places: tuple[str, ...]) -> None:
    """Make a model folder one whose own code would be run: importing it writes `marker`.

    model_type: what `config.json` says the model is; None leaves it as it is, an architecture that transformers knows.
    places: the files that point to the code, of `config.json` and `tokenizer_config.json`.
    """
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Evil: ...\n", encoding="utf-8")
    for name in places:
        entries: dict[str, Any] = {"auto_map": _AUTO_MAPS[name]}
        if model_type is not None and name == "config.json":
            entries["model_type"] = model_type
        if model_type is not None and name == "tokenizer_config.json":
            entries["tokenizer_class"] = "Evil"
        edit_json(folder / name, **entries)


_AUTO_MAPS: dict[str, Any] = {
    "config.json": {
        "AutoConfig": "evil.Evil",
        "AutoModel": "evil.Evil",
        "AutoModelForCausalLM": "evil.Evil",
        "AutoModelForSequenceClassification": "evil.Evil",
    },
    "tokenizer_config.json": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]},
}


def edit_json(path: Path, **entries: Any) -> None:
    """Put entries into a JSON object on disk, which is made where there is none."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**content, **entries}), encoding="utf-8")
