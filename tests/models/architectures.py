"""Every family of causal language models that transformers has, as a tiny random network, and what is found of it.

Each is what its own default configuration describes, cut by `shrunken`. `SETTINGS` are for families whose default
describes nothing that runs; `NOT_MADE` says why a family is left out.

    python tests/models/architectures.py

writes docs/architectures.md anew. It needs the pinned transformers, and takes a minute.
"""

import re
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from instructrl.models.conformance import paths_of
from instructrl.models.folders import with_named_base
from instructrl.models.paths import SEPARATE
from instructrl.models.shrinking import shrunken

# Fields without which a default configuration gives an error, or lacks a kind of layer that the family is known for.
SETTINGS = {
    "bamba": {"attn_layer_indices": [1, 5]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 8, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 64, "num_experts_per_tok": 4},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 16},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2": {"layer_types": ["full_attention", "conv"] * 16},
    "lfm2_moe": {"layer_types": ["full_attention", "conv"] * 16},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "xmod": {"default_language": "en_XX"},
}

# Families that no default configuration makes a language model of text, by what is in the way.
_ANOTHER_PART = "is a part of another model: its default configuration does not stand alone"
_NO_TEXT = "is no model of text alone"
NOT_MADE = {
    "blt": "makes its own patches of bytes and has no number of layers",
    "dots3_note": "its sizes depend on each other in ways that a cut does not keep",
    "dots3_note_text": "its sizes depend on each other in ways that a cut does not keep",
    "gemma3n": "needs the library timm for its images",
    "gemma4_assistant": _ANOTHER_PART,
    "gemma4_unified_assistant": _ANOTHER_PART,
    "hrm_text": "its default configuration fails in transformers' cache",
    "musicgen": _NO_TEXT,
    "musicgen_melody": _NO_TEXT,
    "qwen4_exp": "its default configuration leaves out the sizes of its attention",
    "qwen4_exp_text": "its default configuration leaves out the sizes of its attention",
    "xlstm": "its sizes depend on each other in ways that a cut does not keep",
    "zamba": "a cut leaves one of its shared blocks, which transformers cannot tie",
}

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
FAMILIES = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(NOT_MADE))


def config_of(family: str, **settings) -> PretrainedConfig:
    """The family's own size, as its users have it, but for the settings that are given."""
    return AutoConfig.for_model(family, **{**SETTINGS.get(family, {}), **settings})


def make_lm(family: str, dtype: torch.dtype = torch.float32, *, seed: int = 0, **settings) -> PreTrainedModel:
    """A tiny network of the family in evaluation mode, with weights so large that every token matters."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        lm = AutoModelForCausalLM.from_config(
            shrunken(config_of(family, **settings)),
            dtype=dtype,
            trust_remote_code=False,
            experts_implementation="eager",
        )
        with torch.no_grad():
            for weight in lm.parameters():
                noise = torch.randn(weight.shape)
                weight.copy_(0.3 * noise if weight.dim() > 1 else weight + 0.1 * noise)
    return with_named_base(lm.eval())


def row(family: str) -> str:
    """The line of the page for a family, from what is found of its shrunken network."""
    kind = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]
    try:
        found = paths_of(config_of(family))
    except ValueError as error:
        said = re.search(r"found \w+,? (?:which|whose) (.*?); accepted", str(error))
        return f"| {family} | {kind} | refused: {said[1] if said else error} | | | | |"
    outcome = "accepted, one sequence a completion" if found.shared == SEPARATE else "accepted, shared prompts"
    head = "no" if found.no_scalar_head else "yes"
    shape = ["" if found.scale == 1.0 else f"times {found.scale:g}", found.softcap and f"capped at {found.softcap:g}"]
    logits = ", ".join(filter(None, shape))
    return f"| {family} | {kind} | {outcome} | {found.batch} | {found.steps} | {head} | {logits} |"


def page(rows: dict[str, str]) -> str:
    """docs/architectures.md. rows: family -> its line."""
    return _PAGE.format(
        version=transformers.__version__,
        made=len(rows),
        known=len(rows) + len(NOT_MADE),
        accepted=sum("| accepted" in line for line in rows.values()),
        shared=sum("shared prompts" in line for line in rows.values()),
        rows="\n".join(rows[family] for family in sorted(rows)),
        left_out="\n".join(f"| {family} | {reason} |" for family, reason in sorted(NOT_MADE.items())),
    )


def rows_of_the_page() -> dict[str, str]:
    """Family -> its line on the page as it stands."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.count("|") == 8]
    return {line.split("|")[1].strip(): line for line in lines[2:]}


_PAGE = """# Architectures

Which of transformers' model families can be trained here, and how. transformers {version} has {known} families of
language models; {made} were tried, {accepted} are accepted, {shared} of these with shared prompts.

Nothing in the code knows a family by its name. When a network is loaded, a small random copy of it is made: the same
class and kinds of layers, but with windows, chunks and rotary embeddings limited to about 8 positions. Every way in
which the network will be run is tried with this copy in float64, and compared with a plain pass over single sequences.
A way that gives other results is not used. If none is left, or if the mathematics here would not be that of the model,
the model is refused in one line before anything is written. The result is kept in `~/.cache/instructrl` for each
configuration and version of transformers.

This page is that check on each family's default configuration. Another configuration can give another outcome; what is
checked when you load a model is its own.

- *shared prompts*: the reward model reads each prompt once for all of its completions. Otherwise it reads one sequence
  for each completion.
- *batches*: how rows of different lengths are put into one batch. `padded on the right` is for networks that take the
  position of a token from its column.
- *sampling*: `cached`, from a cache; `cached, prefix once`, the same, and 32 tokens or more with which all prompts of a
  batch begin (examples, a template's first words) are read once; `cached by length`, from one cache for each length of
  prompt; `read anew`, without a cache, because the cache of these networks loses something: every step reads all tokens
  again, which is right but slow.
- *scalar head*: whether the family can be a reward model and a value function. Where transformers has no class for it,
  `instructrl.models.scalar_heads` makes one from transformers' generic head.
- *logits*: a scale or a soft cap (a `tanh`) that the model applies to the projection of its hidden states. It is found
  by trying, and the ops compute it in training as in sampling.

Refused are models with a recurrent state, models whose states depend on later tokens, decoders that need an encoder,
and models that make their logits in another way.

| family | language model | outcome | batches | sampling | scalar head | logits |
| --- | --- | --- | --- | --- | --- | --- |
{rows}

## Not tried

Families whose default configuration does not make a language model of text that runs in transformers {version}.

| family | why |
| --- | --- |
{left_out}

`python tests/models/architectures.py` writes this page; `tests/models/test_architectures.py` compares every line of it
with what is found.
"""

if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page({family: row(family) for family in FAMILIES}), encoding="utf-8")
