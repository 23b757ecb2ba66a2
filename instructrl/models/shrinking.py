"""A tiny network of the same kind: what a configuration describes, with every size and limit cut.

What a network computes along one path or another is decided by its class, its kinds of layers and its limits, not by
its widths. So a copy with narrow layers, one of each kind, and limits that twenty tokens cross shows in a fraction of a
second what the network would do. The tables below are of field names: an architecture has no case of its own.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

HEADS = 4
HEAD_WIDTH = 16  # at a quarter of it, as partial rotary embeddings have, two frequencies are left: scaling shows
MAX_INNER = 32
MAX_RANK = 16
VOCABULARY = 64
POSITIONS = 64
LIMIT = 8  # of windows, chunks and rope: a sequence of twenty tokens crosses each more than once
MIN_LAYERS = 2

# Rope whose frequencies depend on how long the sequence is against a limit, by the names it goes under.
_ROPE_BY_LENGTH = ("dynamic", "longrope", "su")

_LAYER_COUNTS = re.compile(r"(num_hidden_layers|n_layers?|num_layers|num_blocks|num_layers_per_stack)")
_OTHER_LAYER_COUNTS = re.compile(r"(num_)?(en|de)coder_layers|depth")
# Lists of the indices of layers that differ.
_LAYER_INDICES = re.compile(
    r"mlp_only_layers|moe_layers|full_attn_idxs|cross_attention_layers|hybrid_layer_ids|attn_layer_indices"
    r"|ple_layer_ids|(mtp_)?local_layer_ids"
)
# Lists that are shorter than the network and begin again.
_REPEATED_LISTS = re.compile(r"block_types")
# Numbers of layers at the beginning (or end) that differ from the rest.
_FIRST_LAYERS = re.compile(r"first_k_dense_replace|num_dense_layers|max_window_layers|moe_layer_start_index")
_LAST_LAYERS = re.compile(r"num_kv_shared_layers")
_LAST_INDEX = re.compile(r"moe_layer_end_index")
# Every so many layers one differs: cut to every second.
_LAYER_PERIODS = re.compile(
    r"decoder_sparse_step|moe_layer_interval|interleave_moe_layer_step|(attn|expert)_layer_period|layer_group_size"
)
_LAYER_OFFSETS = re.compile(r"(attn|expert)_layer_offset")


@dataclass(frozen=True, slots=True)
class _Shape:
    """Widths and heads before and after, which the sizes of the parts follow."""

    width: int
    heads: int
    query_width: int | None  # of a head whose query has a part with and a part without rope
    inner: int  # of a recurrent layer
    new_width: int
    new_heads: int
    new_key_heads: int
    new_inner: int


def shrunken(config: PretrainedConfig) -> PretrainedConfig:
    """A tiny network of the same class and the same kinds of layers, with limits that twenty tokens cross.

    Nothing in it is larger than in `config`; what is no size or limit (scales, caps, dropout, kinds of rope) is kept.
    Raises ValueError as the configuration's own class does for what it does not accept.
    """
    return type(config).from_dict(_shrunken_fields(config, None))


def _shrunken_fields(config: PretrainedConfig, around: _Shape | None) -> dict[str, Any]:
    """The fields of a configuration, cut. around: the shape of the configuration that it is a part of."""
    fields = config.to_dict()
    shape = _shape(config, around)
    parts = {name: part for name in fields if isinstance(part := vars(config).get(name), PretrainedConfig)}
    layers = _first_int(config, ("num_hidden_layers",))
    if layers is not None and layers > 1:
        _keep_one_layer_of_each_kind(fields, layers)
    rope = [value for name in ("rope_parameters", "rope_scaling") if isinstance(value := fields.get(name), dict)]
    by_length = any(_rope_by_length(value) and not _has_original_limit(fields, value) for value in rope)
    for name, value in fields.items():
        if name in parts:
            fields[name] = _shrunken_fields(parts[name], shape)
        elif _POSITIONS.fullmatch(name):
            fields[name] = _each(value, lambda size: min(size, LIMIT if by_length else POSITIONS))
        elif name == "per_layer_config" and isinstance(value, dict):
            fields[name] = {layer: _cut(own, shape) for layer, own in value.items()}
    fields = _cut(fields, shape)
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(fields.get(name), dict):
            fields[name] = _shrunken_rope(fields[name], config, shape)
    _move_special_ids(fields)
    return fields


def _shape(config: PretrainedConfig, around: _Shape | None) -> _Shape | None:
    """What the sizes follow; None for a part without a width and heads of its own."""
    width, heads = (_first_int(config, names) for names in (_WIDTH_NAMES, _HEAD_NAMES))
    if width is None or (heads is None and around is not None):
        return around
    heads = heads or 1
    key_heads = _first_int(config, _KEY_HEAD_NAMES) or heads
    if getattr(config, "multi_query", False) is True and not getattr(config, "new_decoder_architecture", False):
        key_heads = 1
    new_heads = min(heads, HEADS)
    new_key_heads = new_heads if key_heads == heads else min(key_heads, HEADS // 2)
    new_width = min(width, max(HEAD_WIDTH, new_heads * min(HEAD_WIDTH, max(1, width // heads))))
    expand = _first_int(config, ("mamba_expand", "expand")) or 2
    new_inner = min(expand * new_width, _first_int(config, ("mamba_d_ssm",)) or expand * new_width)
    parts = [_first_int(config, (name,)) or 0 for name in ("qk_nope_head_dim", "qk_rope_head_dim")]
    return _Shape(
        width=width,
        heads=heads,
        query_width=sum(parts) if all(parts) else None,
        inner=expand * width,
        new_width=new_width,
        new_heads=new_heads,
        new_key_heads=new_key_heads,
        new_inner=new_inner,
    )


_WIDTH_NAMES = ("hidden_size", "d_model", "n_embd", "emb_dim", "embed_dim")
_HEAD_NAMES = ("num_attention_heads", "decoder_attention_heads", "n_head", "n_heads", "num_heads")
_KEY_HEAD_NAMES = ("num_key_value_heads", "num_kv_heads", "kv_n_heads", "num_query_groups")


def _first_int(config: PretrainedConfig, names: tuple[str, ...]) -> int | None:
    """The first of the fields that is a number. A field that layers override is read as the whole network's."""
    for name in names:
        value = vars(config).get(config.attribute_map.get(name, name))
        if value is None and isinstance(vars(type(config)).get(name), property):
            value = getattr(config, name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _keep_one_layer_of_each_kind(fields: dict[str, Any], layers: int) -> None:
    """Cut the number of layers, and with it every field that says something by layer."""
    indices = {name: value for name, value in fields.items() if _LAYER_INDICES.fullmatch(name) and value is not None}
    lists = {
        name: (value * layers)[:layers] if _REPEATED_LISTS.fullmatch(name) else value
        for name, value in fields.items()
        if isinstance(value, list) and name not in indices and (len(value) == layers or _REPEATED_LISTS.fullmatch(name))
    }
    own = {int(layer): values for layer, values in (fields.get("per_layer_config") or {}).items()}
    counts = {name: value for name, value in fields.items() if isinstance(value, int) and not isinstance(value, bool)}
    periods = [value for name, value in counts.items() if _LAYER_PERIODS.fullmatch(name) and value > 1]
    borders = {value for name, value in counts.items() if _FIRST_LAYERS.fullmatch(name)}
    borders |= {layers - value for name, value in counts.items() if _LAST_LAYERS.fullmatch(name)}
    borders |= {value + 1 for name, value in counts.items() if _LAST_INDEX.fullmatch(name)}

    def kind(layer: int) -> str:
        said = [value[layer] for value in lists.values()] + [layer in value for value in indices.values()]
        said += [layer < border for border in sorted(borders)] + [(layer + 1) % period == 0 for period in periods]
        return repr((said, own.get(layer)))

    first: dict[str, int] = {}
    for layer in range(layers):
        first.setdefault(kind(layer), layer)
    kept = sorted(first.values())
    kept = sorted(kept + [layer for layer in range(layers) if layer not in kept][: max(0, MIN_LAYERS - len(kept))])
    for name, value in list(fields.items()):
        if name in lists:
            fields[name] = [lists[name][layer] for layer in kept]
        elif name in indices:
            fields[name] = [new for new, layer in enumerate(kept) if layer in value]
        elif name in counts:
            fields[name] = _layer_number(name, value, layers, kept)
    if own:
        fields["per_layer_config"] = {str(new): own[layer] for new, layer in enumerate(kept) if layer in own}
    if isinstance(fields.get("attention_types"), list) and "attention_layers" in fields:  # GPT-Neo's two spellings
        fields["attention_types"] = [[fields["attention_layers"], 1]]


def _layer_number(name: str, value: int, layers: int, kept: list[int]) -> int:
    """A number that counts layers, for the layers that are kept; any other as it is."""
    if _LAYER_COUNTS.fullmatch(name) or _OTHER_LAYER_COUNTS.fullmatch(name):
        return len(kept) if value == layers else min(value, len(kept))
    if _FIRST_LAYERS.fullmatch(name):
        return sum(layer < value for layer in kept)
    if _LAST_LAYERS.fullmatch(name):
        return sum(layer >= layers - value for layer in kept)
    if _LAST_INDEX.fullmatch(name):
        return sum(layer <= value for layer in kept) - 1
    if _LAYER_PERIODS.fullmatch(name):
        return min(value, 2)
    return min(value, 1) if _LAYER_OFFSETS.fullmatch(name) else value


# Field name -> what its number becomes, the first that matches; what no row names stays as it is.
_Rule = Callable[[int, _Shape], int]


def _at_most(limit: int) -> _Rule:
    return lambda size, shape: min(size, limit)


def _width(size: int, shape: _Shape) -> int:
    """Widths that are made from the network's own keep their ratio to it."""
    if size % shape.width == 0:
        return size // shape.width * shape.new_width
    return min(size, shape.new_width)


def _head_width(size: int, shape: _Shape) -> int:
    if size == shape.query_width:
        return min(size, 2 * HEAD_WIDTH)
    if size * shape.heads == shape.width:
        return shape.new_width // shape.new_heads
    if size * shape.heads == shape.inner:
        return shape.new_inner // shape.new_heads
    return min(size, HEAD_WIDTH)


def _heads(count: int, shape: _Shape) -> int:
    return min(count, shape.new_heads)


def _key_heads(count: int, shape: _Shape) -> int:
    return shape.new_heads if count == shape.heads else min(count, shape.new_key_heads)


def _state_width(size: int, shape: _Shape) -> int:
    return min(size, shape.new_inner)


def _state_head_width(size: int, shape: _Shape) -> int:
    return shape.new_inner // HEADS


def _rotary_width(size: int, shape: _Shape) -> int:
    """A part of the head's width, which stays that part and even."""
    head = shape.width // shape.heads
    return max(2, size * (shape.new_width // shape.new_heads) // head // 2 * 2)


_POSITIONS = re.compile(
    r"max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length|model_max_length|max_(target|source)_positions"
)
_RULES: tuple[tuple[re.Pattern[str], _Rule], ...] = tuple(
    (re.compile(pattern), rule)
    for pattern, rule in (
        (r".*vocab_size(_per_layer_input|_base)?|encoder_hash_byte_group_vocab", _at_most(VOCABULARY)),
        (r"(sliding|attention|local_attention)_window(_size|_len)?|window_size|sliding_window_size", _at_most(LIMIT)),
        (r"local_attention|keep_window_size|attention_chunk_size|block_size|index_block_size", _at_most(LIMIT)),
        (r"original_max_position_embeddings|floor_scale|log_scaling_n_floor|rel_extent", _at_most(LIMIT)),
        (r"index_topk|indexer_budget|(lsh|local)_attn_chunk_length", _at_most(LIMIT)),
        (r"num_(local_)?experts|n_routed_experts|moe_num_experts|zero_expert_num", _at_most(4)),
        (r"num_experts_per_tok(en)?|moe_top_?k|moe_k|(moe_)?num_(shared_)?experts_per_tok", _at_most(2)),
        (r"n_groups?|num_expert_group|o_groups|mamba_n_?groups", _at_most(2)),
        (r"topk_group", _at_most(1)),
        (r"num_key_value_heads|num_kv_heads|kv_n_heads|num_query_groups|swa_num_key_value_heads", _key_heads),
        (r"mamba_(n_heads|num_heads)|n_mamba_heads", _at_most(HEADS)),
        (r"mamba_(d_head|headdim|head_dim)", _state_head_width),
        (r"mamba_d_ssm", _state_width),
        (r"(num|n|(num_)?(en|de)coder|swa_num)?_?(attention_)?heads?(_per_layer)?|n_head", _heads),
        # Tokens are chosen by sums of `relu`s over these heads: with few of them sums would be zero, and equal.
        (r"(index|indexer)_(n|kv)_?heads", _at_most(16)),
        (r"linear_num_(key_|value_)?heads", _at_most(2)),
        (r"qk_head_dim", _at_most(2 * HEAD_WIDTH)),
        (r"((global|swa|attention|qk_rope|qk_nope|v|indexer?|linear(_key|_value)?)_)?head_dim", _head_width),
        (r"kv_channels|d_kv|d_head|attention_head_size|dim_head", _head_width),
        (r"rotary_dim|rotary_ndims", _rotary_width),
        (r"hidden_size|d_model|n_embd|emb_dim|embed_dim|embedding_dim|word_embed_proj_dim", _width),
        (r"((in|out)put_)?embedding_size|attention_hidden_size|lru_width|hidden_size_per_layer_input", _width),
        (r".*(intermediate|inner|ffn|router_hidden|feed_forward)_?(hidden)?_?(size|dim).*", _at_most(MAX_INNER)),
        (r"dim_ff|dff|d_ff|n_inner|d_inner", _at_most(MAX_INNER)),
        (r".*_rank|state_size|(mamba_|ssm_)?d?_?state(_size)?", _at_most(MAX_RANK)),
        (r"block_multiple_of", _at_most(LIMIT)),
        (r".*(output|out|conv)_channels?|nemo_conv_channels", _at_most(MAX_INNER)),
    )
)


def _cut(fields: dict[str, Any], shape: _Shape | None) -> dict[str, Any]:
    """Every field by the first rule that names it, lists entry by entry."""
    if shape is None:
        return fields
    cut = dict(fields)
    for name, value in fields.items():
        rule = next((rule for pattern, rule in _RULES if pattern.fullmatch(name)), None)
        if rule is not None:
            cut[name] = _each(value, lambda size, rule=rule: rule(size, shape))
    return cut


def _each(value: Any, rule: Callable[[int], int]) -> Any:
    """The rule on a number or on each number of a list; what is none (None, a flag, a share, -1 for none) stays."""
    if isinstance(value, list):
        return [_each(entry, rule) for entry in value]
    return rule(value) if isinstance(value, int) and not isinstance(value, bool) and value > 0 else value


def _rope_by_length(rope: dict[str, Any]) -> bool:
    """Whether frequencies depend on the length, in a set of rope's parameters or in one for each kind of layer."""
    kinds = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    return any(kind.get("rope_type", kind.get("type")) in _ROPE_BY_LENGTH for kind in kinds)


def _has_original_limit(fields: dict[str, Any], rope: dict[str, Any]) -> bool:
    name = "original_max_position_embeddings"
    kinds = [fields, rope, *(part for part in rope.values() if isinstance(part, dict))]
    return any(kind.get(name) for kind in kinds)


def _shrunken_rope(rope: dict[str, Any], config: PretrainedConfig, shape: _Shape | None) -> dict[str, Any]:
    """Rope's parameters (or those of each kind of layer) with the limit cut and the factors of fewer frequencies."""
    cut = {}
    for name, value in rope.items():
        if isinstance(value, dict):
            cut[name] = _shrunken_rope(value, config, shape)
        elif name in ("short_factor", "long_factor") and shape is not None:
            cut[name] = _fewer(value, len(value) * (shape.new_width // shape.new_heads) // _head_of(config, shape))
        elif name == "mrope_section" and shape is not None:
            cut[name] = _sections(value, sum(value) * (shape.new_width // shape.new_heads) // _head_of(config, shape))
        elif name == "original_max_position_embeddings":
            cut[name] = _each(value, lambda size: min(size, LIMIT))
        else:
            cut[name] = value
    return cut


def _head_of(config: PretrainedConfig, shape: _Shape) -> int:
    return _first_int(config, ("head_dim",)) or shape.width // shape.heads


def _fewer(values: list[float], count: int) -> list[float]:
    """Evenly spaced ones, the last of which are the slow frequencies' as before."""
    count = max(1, min(count, len(values)))
    return [values[round(i * (len(values) - 1) / max(1, count - 1))] for i in range(count)]


def _sections(sizes: list[int], total: int) -> list[int]:
    """Parts in about the same ratio that add up to the new total."""
    cut = [max(1, math.floor(size * total / sum(sizes))) for size in sizes]
    return [*cut[:-1], max(1, total - sum(cut[:-1]))]


_SPECIAL_IDS = re.compile(r".*_token_ids?|.*_token_index|(bos|eos|pad|unk|mask)_index")


def _move_special_ids(fields: dict[str, Any]) -> None:
    """Ids past the new vocabulary become its last ones, equal ids equal and different ids different."""
    names = [name for name in fields if _SPECIAL_IDS.fullmatch(name)]
    given = [i for name in names for i in _flat(fields[name])]
    size = fields.get("vocab_size")
    if not isinstance(size, int):
        return
    taken = {i for i in given if i < size}
    free = (i for i in reversed(range(size)) if i not in taken)
    moved = {i: next(free, i % size) for i in dict.fromkeys(given) if i >= size}
    for name in names:
        fields[name] = _each_id(fields[name], moved)


def _flat(value: Any) -> list[int]:
    if isinstance(value, list):
        return [i for entry in value for i in _flat(entry)]
    return [value] if isinstance(value, int) and not isinstance(value, bool) else []


def _each_id(value: Any, moved: dict[int, int]) -> Any:
    if isinstance(value, list):
        return [_each_id(entry, moved) for entry in value]
    return moved.get(value, value) if isinstance(value, int) else value
