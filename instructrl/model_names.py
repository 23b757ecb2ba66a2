"""What may be given as a model: a folder as transformers writes it, or the name of one at a model hub.

Looked at before anything is loaded: a hub that cannot be reached is waited for, and would be asked for each folder that
is not there.
"""

import difflib
import json
import warnings
from pathlib import Path

_CONFIG = "config.json"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_ACCEPTED = "accepted is a transformers folder or name"


def check_model_name(name: str | Path) -> None:
    """Raise ValueError as `refuse_no_model` does. Warn where it may be a name at a hub, which is asked next."""
    refuse_no_model(name)
    path = Path(name)
    if not path.is_dir():
        warnings.warn(f"model {name}: found no such folder{_suggestion(path)}; a model hub is asked", stacklevel=1)


def refuse_no_model(name: str | Path) -> None:
    """Raise ValueError for what looks like a folder and is none, for a file, and for a run's folder."""
    path = Path(name)
    if path.is_dir():
        _check_folder(path)
    elif path.exists():
        raise ValueError(f"model {name}: found a file, {_ACCEPTED}")
    elif _looks_like_a_path(str(name)):
        raise ValueError(f"model {name}: found no such folder{_suggestion(path)}, {_ACCEPTED}")


def refuse_adapter(name: str | Path, file: str) -> None:
    """Raise ValueError for an adapter at a hub, of which no weights are fetched. file: that shows it to be one."""
    raise ValueError(
        f"model {name}: found a LoRA adapter ({file}), accepted are whole weights there, or a folder with the adapter"
    )


def is_adapter_folder(name: str | Path) -> bool:
    """Whether a folder holds an adapter, alone or beside the weights of its base."""
    return (Path(name) / ADAPTER).is_file()


def has_own_weights(name: str | Path) -> bool:
    """Whether the folder of an adapter holds its base, too."""
    return (Path(name) / _CONFIG).is_file() and any(Path(name).glob("model*.safetensors*"))


def tokenizer_folder(name: str | Path) -> str | Path:
    """Where the tokenizer of a model lies: of an adapter's folder that has none, with its base."""
    folder = Path(name)
    if not is_adapter_folder(name) or any(folder.glob("tokenizer*")):
        return name
    try:
        base = json.loads((folder / ADAPTER).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError, RecursionError):
        return name
    if not base or not isinstance(base, str):  # the adapter is refused, where it is read
        return name
    check_model_name(base)
    return base


def _check_folder(path: Path) -> None:
    if is_adapter_folder(path) or (path / _CONFIG).is_file():
        return
    if (path / ADAPTER_WEIGHTS).is_file():
        raise ValueError(f"model {path}: found an adapter without its {ADAPTER}, accepted is a folder with both")
    patterns = (f"{below}*/{file}" for below in ("", "models/") for file in (_CONFIG, ADAPTER))
    inside = list(dict.fromkeys(file.parent for pattern in patterns for file in sorted(path.glob(pattern))))
    if inside:
        names = ", ".join(map(str, inside[:8])) + (f" and {len(inside) - 8} more" if len(inside) > 8 else "")
        raise ValueError(f"model {path}: found a folder of models, accepted is one of them: {names}")
    if (path / "models").is_dir():
        raise ValueError(f"model {path}: found the folder of a run that has no models yet, {_ACCEPTED}")


def _looks_like_a_path(name: str) -> bool:
    """A hub has names alone and names with that of their owner before a single slash."""
    parent = Path(name).parent
    return (
        name.startswith((".", "~", "/"))
        or "\\" in name
        or name.endswith("/")
        or name.count("/") > 1
        or (name.count("/") == 1 and parent.is_dir())
    )


def _suggestion(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    folders = [other.name for other in path.parent.iterdir() if other.is_dir()]
    close = difflib.get_close_matches(path.name, folders, n=1, cutoff=0.75)
    return f", did you mean {str(path.parent / close[0])!r}" if close else ""
