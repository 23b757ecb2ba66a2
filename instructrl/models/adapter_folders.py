"""Folders of adapters, as peft writes and reads them: what was learned, and where the base is that it was learned on.

    FOLDER/adapter_config.json, adapter_model.safetensors     peft's; a reward model's head is among its weights
           instructrl.json                                    the base's digest and dtype, and the score's bias
           tokenizer files, generation_config.json            as beside whole weights

Base weights may lie in the same folder. Nothing that lies there is run or unpickled.
"""

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from instructrl.model_names import ADAPTER, ADAPTER_WEIGHTS, has_own_weights, is_adapter_folder
from instructrl.models.adapters import adapter_weights, check_places, copy_weights, inject, lora_of, require_peft
from instructrl.models.backbone import load_causal_lm
from instructrl.models.base import Base, loaded_base, share, source_of
from instructrl.models.folders import write_generation_config
from instructrl.models.scalar_heads import scalar_model

_FACTS, _PREFIX, _HEAD = "instructrl.json", "base_model.model.", "score"
_TASKS = {"CAUSAL_LM": "a language model", "SEQ_CLS": "a reward model"}
# Fields of an adapter that may have any value; those of the others that are not peft's defaults are refused.
_ANY = (
    *("r", "lora_alpha", "target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "use_rslora"),
    *("layers_to_transform", "layers_pattern", "fan_in_fan_out", "lora_dropout", "inference_mode", "task_type"),
    *("base_model_name_or_path", "revision", "auto_mapping", "peft_version", "modules_to_save", "megatron_core"),
)
# Of them those that an adapter is made again by.
_OF_LAYERS = _ANY[:9]

_LARGEST = 1e38  # of numbers that float32 holds
# What stands in the files, whoever wrote them: name -> whether a value will do.
_FIELDS: Mapping[str, Callable[[Any], bool]] = {
    "r": lambda x: type(x) is int and x > 0,
    "lora_alpha": lambda x: type(x) in (int, float) and 0 < x < _LARGEST,
    "lora_dropout": lambda x: type(x) in (int, float) and 0 <= x < 1,
    "target_modules": lambda x: isinstance(x, str) or _are_texts(x),
    "exclude_modules": lambda x: isinstance(x, str) or _are_texts(x),
    "modules_to_save": lambda x: _are_texts(x),
    "rank_pattern": lambda x: isinstance(x, dict) and all(map(_FIELDS["r"], x.values())),
    "alpha_pattern": lambda x: isinstance(x, dict) and all(map(_FIELDS["lora_alpha"], x.values())),
    "use_rslora": lambda x: type(x) is bool,
    "fan_in_fan_out": lambda x: type(x) is bool,
    "task_type": lambda x: isinstance(x, str),
    "base_model_name_or_path": lambda x: isinstance(x, str) and x.isprintable(),
    "base": lambda x: isinstance(x, str),
    "base_dtype": lambda x: x in BaseDtype.__args__,
    "score_bias": lambda x: type(x) in (int, float) and abs(x) < _LARGEST,
}

BaseDtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class _Adapter:
    """What lies in a folder. digest: of the base, None where it was not written here."""

    folder: Path
    lora: Any
    weights: Mapping[str, Tensor]
    base: str | None
    digest: str | None
    base_dtype: BaseDtype
    bias: float


def read_policy(path: str | Path, base_dtype: BaseDtype | None = None) -> tuple[PreTrainedModel, Base]:
    """The language model of an adapter, and the base that it stands on: the one in memory where it is there already.

    base_dtype: None is what the adapter was trained with. Raises ValueError for other adapters than LoRA of linear
    layers, for one of a reward model, and for one of another base.
    """
    found = _read(path, "CAUSAL_LM")
    lm, base = _on_its_base(found, base_dtype)
    _put(found, lm, found.weights)
    if (found.folder / "generation_config.json").is_file():
        lm.generation_config = GenerationConfig.from_pretrained(found.folder)
    return lm, base


def read_reward_model(path: str | Path, base_dtype: BaseDtype | None = None) -> tuple[PreTrainedModel, Base, float]:
    """The network with a scalar head of an adapter, its base, and the bias of its score. Raises as `read_policy`."""
    found = _read(path, "SEQ_CLS")
    lm, base = _on_its_base(found, base_dtype)
    network: Any = scalar_model(lm, torch.Generator(), base)
    weights = dict(found.weights)
    for name, parameter in network.score.named_parameters():
        given = weights.pop(f"{_HEAD}.{name}", None)
        if given is None or given.shape != parameter.shape:
            shape = "none" if given is None else list(given.shape)
            raise ValueError(
                f"model {path}: found the head's {name} of shape {shape}, accepted is {list(parameter.shape)}"
            )
        with torch.no_grad():
            parameter.copy_(given)
    _put(found, network, weights)
    return network, base, found.bias


def is_of_reward_model(path: str | Path) -> bool:
    """Which of the two the folder of an adapter holds."""
    return _read_json(Path(path) / ADAPTER).get("task_type") == "SEQ_CLS"


def write_adapter(
    network: PreTrainedModel,
    base: Base,
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    bias: float | None = None,
    ends: Sequence[int] = (),
) -> None:
    """Write what a network on a base has of its own, with its tokenizer.

    bias: of the score, for a reward model. ends: tokens that end a response, the tokenizer's first.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: x.detach() for name, x in adapter_weights(network).items()}
    head = getattr(network, _HEAD, None) if bias is not None else None
    if head is not None:
        weights |= {f"{_HEAD}.{name}": x.detach() for name, x in head.named_parameters()}
    save_file({f"{_PREFIX}{name}": x.cpu().contiguous() for name, x in weights.items()}, folder / ADAPTER_WEIGHTS)
    settings = {name: sorted(x) if isinstance(x, set) else x for name, x in lora_of(network).to_dict().items()}
    settings |= {
        "base_model_name_or_path": source_of(network) or None,
        "inference_mode": True,
        "modules_to_save": None if bias is None else [_HEAD],
        "task_type": "CAUSAL_LM" if bias is None else "SEQ_CLS",
    }
    _write_json(folder / ADAPTER, dict(sorted(settings.items())))
    facts = {"base": base.digest, "base_dtype": str(base.dtype).removeprefix("torch.")}
    _write_json(folder / _FACTS, facts if bias is None else {**facts, "score_bias": bias})
    tokenizer.save_pretrained(folder)
    write_generation_config(getattr(network, "generation_config", None), folder, ends)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _read(path: str | Path, task: str) -> _Adapter:
    folder = Path(path)
    settings, facts = _read_json(folder / ADAPTER), {}
    if (folder / _FACTS).is_file():
        facts = _read_json(folder / _FACTS)
    for file, fields in ((ADAPTER, settings), (_FACTS, facts)):
        for name, value in fields.items():
            if value is not None and name in _FIELDS and not _FIELDS[name](value):
                raise ValueError(f"{folder / file}: {name}: found {value!r}, accepted is the file as it was written")
    lora = _lora(path, settings, task)
    try:
        stored = load_file(folder / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"model {path}: found no {ADAPTER_WEIGHTS} ({reason}), accepted are safetensors") from None
    for name, x in stored.items():
        if not x.is_floating_point() or not bool(x.isfinite().all()):
            kind = f"{x.dtype}".removeprefix("torch.") if not x.is_floating_point() else "numbers that are not finite"
            raise ValueError(f"model {path}: {name}: found {kind}, accepted are finite floating-point numbers")
    return _Adapter(
        folder=folder,
        lora=lora,
        weights={name.removeprefix(_PREFIX): x for name, x in stored.items()},
        base=str(folder) if has_own_weights(folder) else settings.get("base_model_name_or_path"),
        digest=facts.get("base"),
        base_dtype=facts.get("base_dtype") or "float32",
        bias=float(facts.get("score_bias") or 0.0),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: found {type(error).__name__}, accepted is the file as it was written") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: found a {type(found).__name__}, accepted is the file as it was written")
    return found


def _lora(path: str | Path, settings: Mapping[str, Any], task: str) -> Any:
    """peft's settings of the layers."""
    peft = require_peft()
    if settings.get("peft_type") != "LORA":
        raise ValueError(f"model {path}: found an adapter of type {settings.get('peft_type')}, accepted is LORA")
    found = settings.get("task_type") or task
    if found != task:
        kind = _TASKS.get(found, found)
        raise ValueError(f"model {path}: found an adapter of {kind}, accepted is one of {_TASKS[task]}")
    default = peft.LoraConfig().to_dict()
    for name, value in settings.items():
        harmless = name in _ANY or value == default.get(name) or not value
        if name == "init_lora_weights":
            harmless = value in (True, False, "gaussian")  # others change the base
        if not harmless or (name == "modules_to_save" and not set(value or ()) <= {_HEAD, "classifier"}):
            raise ValueError(
                f"model {path}: found an adapter with {name} {value!r}, accepted is LoRA of linear layers without it"
            )
    given = {name: settings[name] for name in _OF_LAYERS if settings.get(name) is not None}
    try:
        return peft.LoraConfig(**given)
    except (ValueError, TypeError) as error:
        raise ValueError(f"model {path}: found an adapter that peft refuses ({_line(error)})") from None


def _on_its_base(found: _Adapter, base_dtype: BaseDtype | None) -> tuple[PreTrainedModel, Base]:
    dtype = getattr(torch, base_dtype or found.base_dtype)
    if found.digest is not None and (base := loaded_base(found.digest, dtype)) is not None:
        lm = base.language_model(found.base or "")
        if lm is not None:
            return lm, base
    if not found.base:
        raise ValueError(
            f"model {found.folder}: found an adapter that names no base, accepted is one with base_model_name_or_path "
            f"in its {ADAPTER}, or beside base weights"
        )
    if is_adapter_folder(found.base) and not has_own_weights(found.base):
        raise ValueError(
            f"model {found.folder}: found an adapter on the adapter {found.base}, accepted is one on whole weights, as "
            "`instructrl merge` makes them"
        )
    with _whole_weights(found.base) as folder:
        lm = load_causal_lm(folder)
    lm.config.name_or_path = found.base
    base = share(lm, dtype)
    if found.digest is not None and base.digest != found.digest:
        raise ValueError(
            f"model {found.folder}: found an adapter for other weights than those in {found.base}; accepted is the "
            "base that it was trained on"
        )
    return lm, base


@contextmanager
def _whole_weights(path: str) -> Iterator[str]:
    """A folder without its adapter, which transformers would load, too."""
    if not is_adapter_folder(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="instructrl-") as aside:
        for file in Path(path).iterdir():
            if file.is_file() and file.name not in (ADAPTER, ADAPTER_WEIGHTS):
                (Path(aside) / file.name).symlink_to(file.resolve())
        yield aside


def _put(found: _Adapter, network: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    where = f"model {found.folder}"
    accepted = f"accepted is one whose layers are those of {found.base or 'its base'}"
    try:
        inject(network, found.lora)
    except (ValueError, re.error) as error:
        raise ValueError(f"{where}: found an adapter for another base ({_line(error)}), {accepted}") from None
    check_places(network, where)
    if wrong := copy_weights(network, weights):
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ValueError(f"{where}: found an adapter for another base ({wrong[0]}{more}), {accepted}")


def _are_texts(x: Any) -> bool:
    return isinstance(x, list) and all(isinstance(text, str) for text in x)


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")
