"""What an architecture is found to do, before anything is trained: no list of architectures is kept here.

A shrunken copy of the network with random weights in float64 goes through every path of `paths` and `decoding`, beside
its own plain forward pass of single sequences. Of each table the first row that agrees is taken; a network for which
none does is refused. What is found is kept, for each configuration and version of transformers.
"""

import copy
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel

from instructrl.models.agreement import ACCEPTED, UnsuitableError, agree
from instructrl.models.decoding import STEPS, CachedAfterAnyPrefix, States
from instructrl.models.folders import silent, with_named_base, write_network
from instructrl.models.paths import BATCHES, OF_A_NETWORK, SEPARATE, SHARED, Paths, shared_prompt_states
from instructrl.models.projection import logits_of_projection
from instructrl.models.scalar_heads import scalar_model
from instructrl.models.shrinking import shrunken
from instructrl.types import SharedPrompts

# Tokens of the longest sequence: the limits of shrunken networks are about 8, their positions as many as are tried.
_LENGTH, _POSITIONS = 20, 64
# Rows of which a prompt decides what they do: each way of them.
_WAYS = {"cached, prefix once": (STEPS["cached"], CachedAfterAnyPrefix)}
# Fields that change no path, and differ from model to model.
_LABELS = ("architectures", "id2label", "label2id", "instructrl_score_bias")


def paths_of(config: PretrainedConfig) -> Paths:
    """The paths of the language models of a configuration.

    Raises ValueError, in one line, where the architecture is recurrent, not causal, makes its logits in another way
    than by a projection, a scale and a soft cap, or cannot be run by any path.
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsuitableError(f"model {_name(config)}: found no language model of this architecture; {ACCEPTED}")
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    text = config.get_text_config()
    if kind.config_class is type(text) and text is not config:  # of a model of several parts the language model alone
        name, config = config.name_or_path, copy.deepcopy(text)
        config.name_or_path = name
    return _paths(config, kind, torch.float32)


def paths_of_network(lm: PreTrainedModel) -> Paths:
    """The same of a language model. Raises ValueError as `paths_of` does."""
    embeddings: Any = lm.get_input_embeddings()
    return _paths(lm.config, type(lm), embeddings.weight.dtype)


def _paths(config: PretrainedConfig, kind: type[PreTrainedModel], dtype: torch.dtype) -> Paths:
    small = shrunken(config)
    small.name_or_path = ""  # what is kept holds for every folder
    fields = {name: value for name, value in small.to_dict().items() if name not in _LABELS}
    description = json.dumps(fields, sort_keys=True, default=str)
    exact = dtype == torch.float64
    words = [kind.__name__, type(config).__name__, description, str(exact), *_versions()]
    key = hashlib.sha256("\0".join(words).encode())
    found = _kept(key.hexdigest(), lambda: _outcome(small, kind, exact))
    if "refused" in found:
        raise UnsuitableError(f"model {_name(config)}: found {found['refused']}")
    return Paths(**{**found, "longest": None if found["longest"] is None else border(config)})


def _name(config: PretrainedConfig) -> str:
    return config.name_or_path or config.model_type


@torch.no_grad()
def check_weights(network: PreTrainedModel, head: nn.Module, paths: Paths) -> None:
    """One pass of the network's own weights: 52 tokens, with and without padding, with and without those that follow.

    network: a language model or one with a scalar head. head: what projects its states. Raises ValueError where states
    depend on what those of the shrunken copy did not, and where states or what is made of them are not finite.
    """
    name = _name(network.config)
    tokens = tokens_of(network, min(16, paths.longest or 16)).to(network.device)
    short, length = len(tokens) // 2, len(tokens)
    padded, mask = tokens.new_zeros(2, length + 2), torch.zeros(2, length + 2, dtype=torch.bool, device=network.device)
    padded[0, 2:], padded[1, 1 : 1 + short] = tokens, tokens[:short]
    mask[0, 2:], mask[1, 1 : 1 + short] = True, True
    states = BATCHES[paths.batch](network, padded, mask)
    truth = plain(network, tokens)
    if not bool(truth.isfinite().all() & head(truth).isfinite().all()):
        raise UnsuitableError(f"model {name}: found weights that give NaN or infinity, accepted are finite ones")
    if not agree(states[0, 2:], truth) or not agree(states[1, 1 : 1 + short], truth[:short]):
        raise UnsuitableError(
            f"model {name}: found weights with which states depend on padding or later tokens; {ACCEPTED}"
        )


def _outcome(small: PretrainedConfig, kind: type[PreTrainedModel], exact: bool) -> dict[str, Any]:
    """exact: for a network that runs in float64."""
    found, reason = [], ""
    # Some networks convert to float32 on their way: what they go on with fails, or their masks are infinite there.
    for dtype in (torch.float64, torch.float32):
        try:
            found.append(_examine(small, kind, dtype))
        except UnsuitableError as error:
            if not found:
                return {"refused": str(error)}
        except OF_A_NETWORK as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
        if found and (exact or found[0].batch == next(iter(BATCHES))):
            break
    if not found:
        return {"refused": f"{kind.__name__}, which fails on ordinary tokens ({reason}); {ACCEPTED}"}
    return asdict(min(found, key=lambda paths: list(BATCHES).index(paths.batch)))


@torch.no_grad()
def _examine(small: PretrainedConfig, kind: type[PreTrainedModel], dtype: torch.dtype) -> Paths:
    network = lively(small, kind, dtype)
    name = type(network).__name__
    if getattr(network, "_is_stateful", False):
        raise UnsuitableError(f"{name}, which has a recurrent state; {ACCEPTED}")
    if small.is_encoder_decoder:  # the language model's own configuration says of itself that it is none
        raise UnsuitableError(f"{name}, which is an encoder with a decoder; {ACCEPTED}")
    longest = None
    if not _is_causal(network):
        longest = border(small)
        if longest is not None:  # what changes with the length of a sequence is left out by limits below it
            network = lively(without_border(small), kind, dtype)
        if longest is None or not _is_causal(network):
            raise UnsuitableError(f"{name}, whose states depend on later tokens; {ACCEPTED}")
    truth = plain(network, tokens_of(network))
    logits = logits_of_projection(network, tokens_of(network), truth)
    batch = _first(BATCHES, lambda row: _batch_agrees(network, truth, row))
    if batch is None:
        raise UnsuitableError(f"{name}, whose states depend on other sequences and padding; {ACCEPTED}")
    steps = _first(
        STEPS, lambda row: all(_steps_agree(network, truth, batch, way) for way in _WAYS.get(row, (STEPS[row],)))
    )
    if steps is None:
        raise UnsuitableError(f"{name}, whose states cannot be had token by token; {ACCEPTED}")
    rows, truth_of_rows = _shared_prompts(network)
    shared = _first(SHARED, lambda row: _shared_prompts_agree(network, rows, truth_of_rows, row)) or SEPARATE
    _check_saving(network, truth)
    why = _why_no_scalar_head(network, truth, batch)
    shape = {"scale": logits.scale, "softcap": logits.softcap}
    return Paths(batch=batch, shared=shared, steps=steps, longest=longest, no_scalar_head=why, **shape)


def lively(
    config: PretrainedConfig, kind: type[PreTrainedModel], dtype: torch.dtype = torch.float64
) -> PreTrainedModel:
    """A network of this configuration with random weights under which every token matters."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    if border(config) is None and 0 < (getattr(text, "max_position_embeddings", None) or 0) < _POSITIONS:
        text.max_position_embeddings = _POSITIONS
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        # Some grouped products of experts know no float64.
        network = with_named_base(kind._from_config(config, dtype=dtype, experts_implementation="eager").eval())
        with torch.no_grad():
            for parameter in network.parameters():
                noise = torch.randn(parameter.shape, dtype=torch.float64).to(parameter.dtype)
                parameter.copy_(0.3 * noise if parameter.dim() > 1 else parameter + 0.1 * noise)
    return network


def tokens_of(network: PreTrainedModel, length: int = _LENGTH) -> Tensor:
    """Ordinary token ids of no special meaning where there are so many: [length] int64."""
    embeddings: Any = network.get_input_embeddings()
    size = len(embeddings.weight)
    fields = network.config.get_text_config().to_dict()
    special = [fields.get(f"{role}_token_id") for role in ("bos", "eos", "pad")]
    special += [i for ids in special if isinstance(ids, list) for i in ids]
    ids = [i for i in range(size) if i not in special] or [0]
    generator = torch.Generator().manual_seed(0)
    return torch.tensor(ids)[torch.randint(len(ids), (length,), generator=generator)]


def plain(network: PreTrainedModel, tokens: Tensor) -> Tensor:
    """The states of one sequence as the network itself computes them. tokens: [L]. Returns [L, D]."""
    return network.base_model(input_ids=tokens[None], use_cache=False).last_hidden_state[0]


def _is_causal(network: PreTrainedModel) -> bool:
    tokens = tokens_of(network)
    whole = plain(network, tokens)
    if not bool(whole.isfinite().all()):
        raise UnsuitableError(f"{type(network).__name__}, which gives NaN or infinity; {ACCEPTED}")
    # A sequence's own length comes last: some networks remember the longest that they have seen.
    return all(agree(plain(network, tokens[:length]), whole[:length]) for length in (3, 10, 15))


def _first(rows: Iterable[str], agrees: Callable[[str], bool]) -> str | None:
    for row in rows:
        with suppress(*OF_A_NETWORK):  # what a network raises for inputs that it does not know
            if agrees(row):
                return row
    return None


def _batch_agrees(network: PreTrainedModel, truth: Tensor, row: str) -> bool:
    """Beginnings of a sequence, of several lengths and padded on both sides, beside each other. truth: its states."""
    tokens = tokens_of(network)
    places = [(0, _LENGTH), (2, 13), (7, 16), (5, 6)]
    mask = torch.zeros(len(places), _LENGTH + 3, dtype=torch.bool)
    for i, (start, end) in enumerate(places):
        mask[i, start:end] = True
    padded = torch.zeros(mask.shape, dtype=torch.int64)
    padded[mask] = torch.cat([tokens[: end - start] for start, end in places])
    states = BATCHES[row](network, padded, mask)
    return all(agree(states[i, start:end], truth[: end - start]) for i, (start, end) in enumerate(places))


def _shared_prompts(network: PreTrainedModel) -> tuple[SharedPrompts, Tensor]:
    """Prompts of 6 and 2 tokens with responses that cross the limits of a shrunken network, and the states of all
    response tokens, row after row, from sequences of their own: [N, D]."""
    tokens = tokens_of(network, 64)
    rows, truths = [], []
    for prompt, lengths in ((6, (14, 5, 10)), (2, (12, 13, 0))):
        ids, segments, positions = [tokens[:prompt]], [torch.zeros(prompt)], [torch.arange(prompt)]
        for k, length in enumerate(lengths, start=1):
            ids.append(tokens[10 * k : 10 * k + length])
            segments.append(torch.full((length,), k))
            positions.append(prompt + torch.arange(length))
            truths.append(plain(network, torch.cat([ids[0], ids[-1]]))[prompt:])
        rows.append([torch.cat(x).long() for x in (ids, segments, positions)])
    tokens, segments, positions = (
        nn.utils.rnn.pad_sequence([row[i] for row in rows], batch_first=True, padding_value=(0, -1, 0)[i])
        for i in range(3)
    )
    return SharedPrompts(tokens=tokens, segments=segments, positions=positions, last=segments[:, :3]), torch.cat(truths)


def _shared_prompts_agree(network: PreTrainedModel, rows: SharedPrompts, truth: Tensor, row: str) -> bool:
    return agree(shared_prompt_states(network, rows, row)[rows.segments > 0], truth)


def _steps_agree(
    network: PreTrainedModel, truth: Tensor, batch: str, row: Callable[[PreTrainedModel, str, Tensor, Tensor], States]
) -> bool:
    """Prompts of 6, 2, 3 and 3 tokens, read at once and then token by token; rows leave in between."""
    tokens = tokens_of(network)
    starts = [6, 2, 3, 3]
    mask = torch.arange(6)[None, :] >= 6 - torch.tensor(starts)[:, None]
    prompt = torch.zeros(mask.shape, dtype=torch.int64)
    prompt[mask] = torch.cat([tokens[:start] for start in starts])
    states = row(network, batch, prompt, mask)
    left = torch.tensor(starts)
    found = states.start()
    for step in range(_LENGTH - 6):
        if not agree(found, truth[left - 1]):
            return False
        if step == 5:  # the last row takes the place of the second, and that of its length leaves
            order = torch.tensor([0, 3])
            states.keep(order)
            left = left[order]
        found = states.append(tokens[left])
        left = left + 1
    return agree(found, truth[left - 1])


def _why_no_scalar_head(network: PreTrainedModel, truth: Tensor, batch: str) -> str:
    """Why a network with a scalar head has not the states of the language model; "" where it has them."""
    try:
        scalar: Any = scalar_model(network, torch.Generator().manual_seed(0))
    except OF_A_NETWORK as error:
        reason = "" if isinstance(error, ValueError) else f" ({str(error).partition(chr(10))[0]})"
        return f"{type(network).__name__}, which cannot have a scalar head{reason}"
    tokens = tokens_of(network)
    mask = torch.ones(1, len(tokens), dtype=torch.bool)
    if not agree(BATCHES[batch](scalar, tokens[None], mask)[0], truth):
        return f"{type(scalar).__name__}, whose states are not those of {type(network).__name__}"
    return ""


def _check_saving(network: PreTrainedModel, truth: Tensor) -> None:
    with tempfile.TemporaryDirectory(prefix="instructrl-") as folder, silent():
        vars(network)["should_save_on_this_rank"] = lambda _: True  # of a job, its first process alone would write
        write_network(network, folder)
        loaded = type(network).from_pretrained(
            folder, dtype=network.dtype, experts_implementation="eager", local_files_only=True
        )
    if not agree(plain(with_named_base(loaded.eval()), tokens_of(network)), truth):
        raise UnsuitableError(
            f"{type(network).__name__}, which transformers saves and loads as another one; {ACCEPTED}"
        )


def border(config: PretrainedConfig) -> int | None:
    """Tokens of a sequence above which its rotary embeddings change, for all of its tokens; None where they do not."""
    text = config.get_text_config()
    found = []
    for parameters in _rope_parameters(text):
        kind = parameters.get("rope_type", parameters.get("type"))
        if kind == "longrope":
            found.append(
                parameters.get("original_max_position_embeddings")
                or getattr(text, "original_max_position_embeddings", None)
                or text.max_position_embeddings
            )
        elif kind == "dynamic":
            found.append(text.max_position_embeddings)
    return min(found, default=None)


def without_border(config: PretrainedConfig) -> PretrainedConfig:
    """A copy whose rotary embeddings stay the same at every length that is tried here."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    for holder in (text, *_rope_parameters(text)):
        for field in ("max_position_embeddings", "original_max_position_embeddings"):
            if isinstance(holder, dict) and field in holder:
                holder[field] = _POSITIONS
            elif not isinstance(holder, dict) and getattr(holder, field, None) is not None:
                setattr(holder, field, _POSITIONS)
    return config


def _rope_parameters(text: PretrainedConfig) -> list[dict[str, Any]]:
    """Of the whole network, or of each kind of layer."""
    found = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    nested = [value for value in found.values() if isinstance(value, dict)]
    return nested or [found]


def _versions() -> list[str]:
    return [transformers.__version__, torch.__version__, _sources()]


@lru_cache
def _sources() -> str:
    """Of what was examined: the paths and the examination itself."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


_KEPT: dict[str, Mapping[str, Any]] = {}


def _kept(key: str, examine: Callable[[], dict[str, Any]]) -> Mapping[str, Any]:
    """What was found before under this key, in this process or another; else what is found now."""
    if key not in _KEPT:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "instructrl" / "paths"
        file = cache / f"{key}.json"
        found = _read(file)
        if found is None:
            found = examine()
            with suppress(OSError):  # a home that cannot be written to costs a second at each start
                cache.mkdir(parents=True, exist_ok=True)
                aside = cache / f"{key}.{os.getpid()}"
                aside.write_text(json.dumps(found), encoding="utf-8")
                aside.replace(file)
        _KEPT[key] = found
    return _KEPT[key]


def _read(file: Path) -> dict[str, Any] | None:
    """None where there is no such file, or one that was cut."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if "refused" not in found:
            Paths(**found)
    except (OSError, ValueError, TypeError):
        return None
    return found
