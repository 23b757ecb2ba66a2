"""Folders of models and tokenizers."""

import json
from pathlib import Path

import torch
from table import Row, both, cut, edited, removed, text, weights

_WEIGHTS = "model/model.safetensors"
_ATTENTION = (
    "accepted are causal attention models whose logits are a projection of their states, scaled or softly capped"
)
_LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def _no_causal_model() -> None:
    """Weights that fit, of an architecture whose tokens see each other."""
    from transformers import BertConfig, BertLMHeadModel

    size = len(json.loads(Path("model/tokenizer.json").read_text())["model"]["vocab"]) + 1
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    BertLMHeadModel(config).save_pretrained("model")


def _nan(tensors: dict[str, torch.Tensor]) -> None:
    name = min(tensors)
    tensors[name] = torch.full_like(tensors[name], float("nan"))


def _without_last(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[max(tensors)]


def _pickle() -> None:
    Path(_WEIGHTS).rename("model/pytorch_model.bin")


ROWS = [
    Row(
        what="missing folder",
        step="sft",
        options="--model nowhere",
        message=(
            "tokenizer: found none at nowhere (…), accepted is a model folder or name; code that comes with it "
            "is not run"
        ),
    ),
    Row(
        what="missing folder by its path",
        step="sft",
        options="--model ./models/nowhere",
        message="model ./models/nowhere: found no such folder, accepted is a transformers folder or name",
    ),
    Row(
        what="file for a model",
        step="rm",
        options="--model corpus.jsonl",
        message="model corpus.jsonl: found a file, accepted is a transformers folder or name",
    ),
    Row(
        what="folder without a model",
        step="rm",
        options="--model splits",
        message=(
            "tokenizer: found none at splits (…), accepted is a model folder or name; code that comes with it is "
            "not run"
        ),
    ),
    Row(
        what="missing model to compare",
        step="eval",
        options="--models nowhere",
        message=(
            "tokenizer: found none at nowhere (…), accepted is a model folder or name; code that comes with it "
            "is not run"
        ),
    ),
    Row(
        what="no config.json",
        step="sft",
        make=removed("model/config.json"),
        message=(
            "model model: found …, accepted are architectures that transformers has: code that comes with a "
            "model is not run"
        ),
    ),
    Row(
        what="config.json cut off",
        step="sft",
        make=cut("model/config.json", 100),
        message=(
            "tokenizer: found none at model (…), accepted is a model folder or name; code that comes with it is not run"
        ),
    ),
    Row(
        what="config.json that is a list",
        step="sft",
        make=text("model/config.json", "[]"),
        message=(
            "tokenizer: found none at model (…), accepted is a model folder or name; code that comes with it is not run"
        ),
    ),
    Row(
        what="no architecture",
        step="sft",
        make=edited("model/config.json", model_type=None),
        message=(
            "model model: found …, accepted are architectures that transformers has: code that comes with a "
            "model is not run"
        ),
    ),
    Row(
        what="unknown architecture",
        step="sft",
        make=edited("model/config.json", model_type="gpt99"),
        message=(
            "model model: found …, accepted are architectures that transformers has: code that comes with a "
            "model is not run"
        ),
    ),
    Row(
        what="encoder-decoder",
        step="sft",
        make=edited("model/config.json", model_type="t5"),
        message=f"model model: found no language model of this architecture; {_ATTENTION}",
    ),
    Row(
        what="model of pictures",
        step="sft",
        make=edited("model/config.json", model_type="vit"),
        message=f"model model: found no language model of this architecture; {_ATTENTION}",
    ),
    Row(
        what="model that is not causal",
        step="sft",
        make=_no_causal_model,
        message=f"model model: found BertLMHeadModel, whose states depend on later tokens; {_ATTENTION}",
    ),
    Row(
        what="code of its own",
        step="sft",
        make=both(
            edited("model/config.json", model_type="mine", auto_map={"AutoConfig": "mine.A"}), text("model/mine.py", "")
        ),
        message=(
            "model model: found …, accepted are architectures that transformers has: code that comes with a "
            "model is not run"
        ),
    ),
    Row(
        what="word for a size",
        step="sft",
        make=edited("model/config.json", n_embd="wide"),
        message=(
            "tokenizer: found none at model (…), accepted is a model folder or name; code that comes with it is not run"
        ),
    ),
    Row(
        what="heads that do not divide the width",
        step="sft",
        make=edited("model/config.json", n_head=5),
        message="model model: found …, accepted are configurations and weights that transformers loads",
    ),
    Row(
        what="unknown activation",
        step="sft",
        make=edited("model/config.json", activation_function="mine"),
        message=f"model model: found GPT2LMHeadModel, which fails on ordinary tokens (…); {_ATTENTION}",
    ),
    Row(
        what="weights of another architecture",
        step="sft",
        make=edited("model/config.json", **_LLAMA),
        message=(
            "model model: found no … among the weights, of … that are missing; accepted are all weights of a "
            "LlamaForCausalLM"
        ),
    ),
    Row(
        what="weights of another width",
        step="sft",
        make=edited("model/config.json", n_embd=64),
        message="model model: found … of shape …, accepted is …, as config.json has it",
    ),
    Row(
        what="weights of fewer layers",
        step="sft",
        make=edited("model/config.json", n_layer=3),
        message=(
            "model model: found no … among the weights, of … that are missing; accepted are all weights of a "
            "GPT2LMHeadModel"
        ),
    ),
    Row(
        what="a weight that is missing",
        step="sft",
        make=weights("model", _without_last),
        message=(
            "model model: found no … among the weights, of … that are missing; accepted are all weights of a "
            "GPT2LMHeadModel"
        ),
    ),
    Row(
        what="NaN in the weights",
        step="sft",
        make=weights("model", _nan),
        message="model model: found weights that give NaN or infinity, accepted are finite ones",
    ),
    Row(
        what="no weights",
        step="sft",
        make=removed(_WEIGHTS),
        message="model model: found no such weights (…), accepted are safetensors: nothing is unpickled",
    ),
    Row(
        what="weights in a pickle",
        step="sft",
        make=_pickle,
        message="model model: found no such weights (…), accepted are safetensors: nothing is unpickled",
    ),
    Row(
        what="truncated weights",
        step="sft",
        make=cut(_WEIGHTS, 5000),
        message="model model: found weights that cannot be read (…), accepted are safetensors: nothing is unpickled",
    ),
    Row(
        what="empty weights",
        step="sft",
        make=cut(_WEIGHTS, 0),
        message="model model: found weights that cannot be read (…), accepted are safetensors: nothing is unpickled",
    ),
    Row(
        what="damaged weights to compare",
        step="eval",
        make=cut("other/model.safetensors", 5000),
        message="model other: found weights that cannot be read (…), accepted are safetensors: nothing is unpickled",
    ),
    Row(
        what="context too short for the limits",
        step="sft",
        options="--limits.max-prompt-tokens 30",
        message="limits: found 38 tokens in a sequence, accepted are up to the 32 positions of the model",
    ),
    Row(
        what="context too short for a block",
        step="sft",
        options="--corpus corpus.jsonl --block-tokens 33 --sft.pretraining-fraction 0.25",
        message="block_tokens: found 33 tokens in a sequence, accepted are up to the 32 positions of the model",
    ),
]
