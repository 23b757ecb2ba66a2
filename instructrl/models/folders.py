"""From a transformers folder or name to a network, without running anything that lies in the folder.

Weights come from safetensors alone. transformers' own switch for that does not cover a file that the configuration or
an index of shards names: what does not end in `.safetensors` goes through the unpickler.
"""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging
from transformers.utils.hub import cached_file

from instructrl import distributed
from instructrl.model_names import check_model_name, refuse_adapter
from instructrl.models.parts import cut, read_parts

INDEX, _WEIGHTS = "model.safetensors.index.json", "model.safetensors"
_OF_AN_INDEX = ".safetensors.index.json"
# How transformers' names of networks end, by what they give.
_LANGUAGE_MODELS = ("LMHeadModel", "ForCausalLM", "ForConditionalGeneration")
_CLASSIFIERS = ("ForSequenceClassification", "ForTokenClassification")
_ACCEPTED = "accepted are safetensors: nothing is unpickled"
# What transformers raises for a configuration that it cannot use, by the ways in which it can be wrong.
_OF_A_CONFIG = (
    *(ValueError, TypeError, KeyError, AttributeError, AssertionError, RuntimeError, ImportError),
    StrictDataclassError,
)


def read_config(path: str | Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of a model. Raises ValueError for an architecture that transformers does not have, and where
    there is no configuration; and as `check_model_name` does."""
    check_model_name(path)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except OSError as error:
        raise ValueError(
            f"model {path}: found {_one_line(error)}, accepted is a transformers folder or name"
        ) from error
    except _OF_A_CONFIG as error:
        raise ValueError(
            f"model {path}: found {_one_line(error)}, accepted are architectures that transformers has: code that "
            "comes with a model is not run"
        ) from error
    if not Path(path).is_dir():
        _check_no_adapter(path)
    return config


def _check_no_adapter(name: str | Path) -> None:
    """Of a model at a hub; of a folder it is known. With peft, transformers would load the adapter in its base."""
    try:
        cached_file(name, "adapter_config.json")
    except OSError:
        return
    refuse_adapter(name, "adapter_config.json")


def check_language_model(path: str | Path, config: PretrainedConfig) -> None:
    """Raise ValueError for a model that was saved with another head than that of a language model."""
    for name in config.architectures or ():
        if name.endswith(_CLASSIFIERS):
            raise ValueError(
                f"model {path}: found a {name}, such as a reward model is; accepted is a language model, as "
                "`instructrl sft` writes them into OUT/models"
            )


def check_reward_model(path: str | Path, config: PretrainedConfig) -> None:
    """Raise ValueError for a language model."""
    for name in config.architectures or ():
        if name.endswith(_LANGUAGE_MODELS):
            raise ValueError(
                f"reward model {path}: found a language model ({name}), accepted is a reward model: `instructrl rm` "
                "makes one of it, OUT/models/reward_model"
            )


def read_network(
    kind: Any, path: str | Path, config: PretrainedConfig, *, trust_remote_code: bool = False, in_parts: bool = False
) -> PreTrainedModel:
    """The network with its weights in float32. kind: a transformers Auto class. in_parts: in a job of several processes
    as `models.parts` has it.

    Raises OSError where there are no safetensors, ValueError for other weights under that name, where the configuration
    or the index names other files, and where the weights are not those of the configuration.
    """
    _check_names(path, config)
    in_parts = in_parts and distributed.size_of_job() > 1
    try:
        with silent():
            read = _read_parts(kind, path, config) if in_parts else None
            network, found = read or kind.from_pretrained(
                path,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported, and refused below in one line
            )
    except SafetensorError as error:
        raise ValueError(f"model {path}: found weights that cannot be read ({error}), {_ACCEPTED}") from error
    except OSError as error:
        raise OSError(f"model {path}: found no such weights ({_one_line(error)}), {_ACCEPTED}") from error
    except _OF_A_CONFIG as error:
        raise ValueError(
            f"model {path}: found {_one_line(error)}, accepted are configurations and weights that transformers loads"
        ) from error
    _check_loaded(path, network, found)
    if in_parts:
        cut(network)
    return with_named_base(network)


def _read_parts(kind: Any, path: str | Path, config: PretrainedConfig) -> tuple[PreTrainedModel, dict[str, Any]] | None:
    """None where the network is to be read whole."""
    if getattr(config, "transformers_weights", None) is not None:
        return None
    try:
        files = _files(path)
    except OSError:
        return None  # what is missing is said by whoever reads it whole
    names: dict[str, Path] = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            twice = sorted(names.keys() & set(opened.keys()))
            if twice:
                raise ValueError(f"{twice[0]} in {names[twice[0]].name} and in {file.name}")
            names |= dict.fromkeys(opened.keys(), file)
    if kind is AutoModelForCausalLM:  # which asks for a folder or name; it takes the class, and its part of a model, so
        kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        config = config if kind.config_class is type(config) else config.get_text_config()
    read = read_parts(kind, config, names)
    if read is not None:
        network, _ = read
        network.config.name_or_path = config.name_or_path
        with suppress(OSError):
            network.generation_config = GenerationConfig.from_pretrained(path)
    return read


def with_named_base(network: PreTrainedModel) -> PreTrainedModel:
    """The network with `base_model` as the part below its head, which some classes call otherwise (Llama 4)."""
    if network.base_model is network:
        parts = [name for name, part in network.named_children() if isinstance(part, PreTrainedModel)]
        if len(parts) == 1:
            network.base_model_prefix = parts[0]
    return network


@contextmanager
def silent() -> Iterator[None]:
    """Inside, transformers says nothing: no bars, no table of weights that are missing or left over."""
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _check_loaded(path: str | Path, network: PreTrainedModel, found: dict[str, Any]) -> None:
    """Raise ValueError where weights are missing or have other shapes: transformers draws them at random."""
    kind = type(network).__name__
    for name, *shapes in found["mismatched_keys"]:
        there, wanted = map(tuple, shapes)
        raise ValueError(f"model {path}: found {name} of shape {there}, accepted is {wanted}, as config.json has it")
    missing = sorted(found["missing_keys"])
    if missing:
        raise ValueError(
            f"model {path}: found no {missing[0]} among the weights, of {len(missing)} that are missing; accepted are "
            f"all weights of a {kind}"
        )
    unused = sorted(found["unexpected_keys"])
    if unused:
        warnings.warn(
            f"model {path}: {len(unused)} weights have no place in a {kind}, such as {unused[0]}", stacklevel=2
        )


@contextmanager
def room_for(folder: Path) -> Iterator[None]:
    """Inside, what the system says while weights are written is an OSError about the folder that they are for."""
    try:
        yield
    except SafetensorError as error:  # its own for what the system says
        raise OSError(f"{folder}: found {error}, accepted is a folder with room for a model") from error


def write_network(network: PreTrainedModel, folder: str | Path) -> GenerationConfig | None:
    """Write weights and configuration. Returns the settings of generation, which are left to the caller.

    transformers refuses to write those that it finds odd, such as a temperature without sampling, which published
    models have: an end of training is no place for that.
    """
    own = getattr(network, "generation_config", None)
    if own is not None:
        network.generation_config = GenerationConfig()
    try:
        network.save_pretrained(folder)
    finally:
        if own is not None:
            network.generation_config = own
    return own


def save_network(
    network: PreTrainedModel,
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    fields: Mapping[str, Any],
    *,
    ends: Sequence[int] = (),
) -> None:
    """Write a transformers folder with its tokenizer. The configuration's end of text is the tokenizer's.

    fields: of the configuration. ends: tokens that end a response, the tokenizer's first, for `generation_config.json`.
    """
    fields = {**fields, "eos_token_id": tokenizer.eos_token_id}
    for config in (network.config, network.config.get_text_config(decoder=True)):
        for name, value in fields.items():
            setattr(config, name, value)
    own = write_network(network, folder)
    tokenizer.save_pretrained(folder)
    write_generation_config(own, folder, ends)


def write_generation_config(own: GenerationConfig | None, folder: str | Path, ends: Sequence[int]) -> None:
    """Write `generation_config.json` with the tokens that end a response, where there are settings and such tokens."""
    if ends and own is not None:
        path = Path(folder) / "generation_config.json"
        content = json.loads(own.to_json_string())
        content.pop("_from_model_config", None)  # it would be made again, of the configuration
        content["eos_token_id"] = list(ends) if len(ends) > 1 else ends[0]
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _check_names(path: str | Path, config: PretrainedConfig) -> None:
    """Raise ValueError where a file of weights has another ending, or lies outside of the folder."""
    named = getattr(config, "transformers_weights", None)
    files, indices = [], [INDEX]
    if named is not None:
        (indices if str(named).endswith(_OF_AN_INDEX) else files).append(named)
    for index in indices:
        _check_name(path, index, _OF_AN_INDEX)
        files += _shards(path, index)
    for name in files:
        _check_name(path, name, ".safetensors")


def _check_name(path: str | Path, name: Any, ending: str) -> None:
    if not isinstance(name, str) or Path(name).name != name or not name.endswith(ending):
        raise ValueError(f"model {path}: found the file {name!r} for weights, {_ACCEPTED}")


def _files(path: str | Path) -> list[Path]:
    """Those that transformers reads weights from, in an order that every process has. Raises OSError where there are
    none."""
    try:
        return [Path(str(cached_file(path, _WEIGHTS)))]
    except OSError:
        cached_file(path, INDEX)
        return [Path(str(cached_file(path, name))) for name in sorted(set(_shards(path, INDEX)))]


def _shards(path: str | Path, index: str) -> list[Any]:
    """The files that an index names; none where there is no index."""
    try:
        found = cached_file(path, index)
    except OSError:
        return []
    assert found is not None  # it raises instead
    try:
        names = list(json.loads(Path(found).read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"model {path}: found a damaged {index} ({error!r}), accepted is one of transformers"
        ) from error
    if not names:
        raise ValueError(f"model {path}: found a damaged {index} (it names no file), accepted is one of transformers")
    return names


def _one_line(error: Exception) -> str:
    """Its first sentences: transformers goes on with advice, on other lines or with a list of all that it has."""
    text, _, rest = str(error).partition("\n")
    if text.rstrip().endswith(":"):  # the sentence goes on
        text = f"{text.rstrip()} {rest.strip().partition(chr(10))[0]}"
    text = text or type(error).__name__
    return f"{text if isinstance(error, (ValueError, OSError)) else f'{type(error).__name__}: {text}'}".rstrip(" .:")
