"""Tokenizers, and models that have to fit another one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from table import Row, both, cut, edited, removed, text, weights

_TOKENIZER = ("model/tokenizer.json", "model/tokenizer_config.json")


_LANGUAGE_MODEL = (
    "reward model {}: found a language model (GPT2LMHeadModel), accepted is a reward model: `instructrl rm` makes "
    "one of it, OUT/models/reward_model"
)
_REWARD_MODEL = (
    "model reward: found a GPT2ForSequenceClassification, such as a reward model is; accepted is a language model, as "
    "`instructrl sft` writes them into OUT/models"
)


def _other_tokenizer(path: str) -> None:
    from instructrl.data.tokenizers import word_tokenizer

    word_tokenizer([f"v{number}" for number in range(30)]).save_pretrained(path)


def _more_words() -> None:
    from instructrl.data.tokenizers import word_tokenizer

    word_tokenizer([f"w{number}" for number in range(40)]).save_pretrained("model")


def _hole(path: str, token: str = "w29", to: int = 90) -> Callable[[], object]:
    """A token at another id, as many tokens as before."""

    def move() -> None:
        file = Path(path, "tokenizer.json")
        content = json.loads(file.read_text(encoding="utf-8"))
        content["model"]["vocab"].pop(token, None)
        content["model"]["vocab"][token] = to
        for added in content["added_tokens"]:
            added["id"] = to if added["content"] == token else added["id"]
        file.write_text(json.dumps(content), encoding="utf-8")

    return move


def _fewer_embeddings(path: str, rows: int = 30) -> Callable[[], object]:
    def cut(tensors: dict[str, torch.Tensor]) -> None:
        tensors["transformer.wte.weight"] = tensors["transformer.wte.weight"][:rows].clone()

    return both(edited(f"{path}/config.json", vocab_size=rows), weights(path, cut))


def _beyond(token: str, number: int, model: str = "model", rows: int = 32) -> str:
    return (
        f"model {model}: found a tokenizer whose {token!r} has the id {number}, for {rows} embeddings; accepted is one "
        "whose ids all have an embedding"
    )


def _nan(tensors: dict[str, torch.Tensor]) -> None:
    name = min(tensors)
    tensors[name] = torch.full_like(tensors[name], float("nan"))


TOKENIZERS = [
    Row(
        what="vocabulary larger than the embeddings",
        step="sft",
        make=_more_words,
        message=_beyond("<|endoftext|>", 41),
    ),
    Row(
        what="fewer tokens than embeddings, an id beyond them",
        step="sft",
        make=_hole("model"),
        message=_beyond("w29", 90),
    ),
    Row(what="such ids in `rm`", step="rm", make=_hole("model"), message=_beyond("w29", 90)),
    Row(what="such ids in `ppo`", step="ppo", make=_hole("model"), message=_beyond("w29", 90)),
    Row(what="such ids in `eval`", step="eval", make=_hole("model"), message=_beyond("w29", 90)),
    Row(what="such ids in `run files`", step="files", make=_hole("model"), message=_beyond("w29", 90)),
    Row(
        what="end of text beyond the embeddings",
        step="sft",
        make=_hole("model", "<|endoftext|>"),
        message=_beyond("<|endoftext|>", 90),
    ),
    Row(
        what="embeddings of the judge end below the ids",
        step="ppo",
        make=_fewer_embeddings("reward"),
        message=_beyond("<|endoftext|>", 31, "reward", 30),
    ),
    Row(
        what="no tokenizer",
        step="sft",
        make=removed(*_TOKENIZER),
        message="tokenizer: found no vocabulary in model, accepted is a folder with a tokenizer.json",
    ),
    Row(
        what="tokenizer.json cut off",
        step="sft",
        make=cut("model/tokenizer.json", 50),
        message=(
            "tokenizer: found none at model (…), accepted is a model folder or name; code that comes with it is not run"
        ),
    ),
    Row(
        what="tokenizer.json without a tokenizer",
        step="sft",
        make=text("model/tokenizer.json", "{}"),
        message=(
            "tokenizer: found none at model (…), accepted is a model folder or name; code that comes with it is not run"
        ),
    ),
    Row(
        what="tokenizer settings that are a list",
        step="sft",
        make=text("model/tokenizer_config.json", "[]"),
        message=(
            "tokenizer: found none at model (…), accepted is a model folder or name; code that comes with it is not run"
        ),
    ),
    Row(
        what="no end-of-text token",
        step="sft",
        make=edited("model/tokenizer_config.json", eos_token=None),
        message="tokenizer: found no eos token in model, accepted is one with eos_token set (it ends every response)",
    ),
    Row(
        what="end of text that is a word",
        step="sft",
        make=edited("model/tokenizer_config.json", eos_token="w3"),
        message="tokenizer: eos_token: found 'w3', a word of texts, accepted is a token that no text has",
    ),
    Row(
        what="other words in the reward model",
        step="ppo",
        make=lambda: _other_tokenizer("reward"),
        message="reward: found another tokenizer than the model's, accepted is a model with the same one",
    ),
    Row(
        what="other end of text in the reward model",
        step="ppo",
        make=edited("reward/tokenizer_config.json", eos_token="<unk>"),
        message="reward: found another tokenizer than the model's, accepted is a model with the same one",
    ),
    Row(
        what="other words in a compared model",
        step="eval",
        make=lambda: _other_tokenizer("other"),
        message="other: found another tokenizer than the model's, accepted is a model with the same one",
    ),
    Row(
        what="GPT-2 vocabulary that is no JSON",
        step="prepare",
        make=text("model/encoder.json", "{"),
        message="model/encoder.json: found …, accepted is the GPT-2 vocabulary as JSON",
    ),
    Row(
        what="GPT-2 vocabulary without its end",
        step="prepare",
        make=text("model/encoder.json", "[]"),
        message="encoder.json: found no <|endoftext|> in model, accepted is the GPT-2 vocabulary",
    ),
    Row(
        what="GPT-2 vocabulary without merges",
        step="prepare",
        make=text("model/encoder.json", '{"<|endoftext|>": 0}'),
        message="folder: found no vocab.bpe in model, accepted is a folder with encoder.json and vocab.bpe",
    ),
    Row(
        what="merges of another vocabulary",
        step="prepare",
        make=both(text("model/encoder.json", '{"<|endoftext|>": 0}'), text("model/vocab.bpe", "#\na b\n")),
        message="model/vocab.bpe:2: found 'a' 'b', accepted are merges of encoder.json",
    ),
]

REWARD_MODELS = [
    Row(
        what="missing reward model",
        step="ppo",
        options="--reward-model nowhere",
        message=(
            "tokenizer: found none at nowhere (…), accepted is a model folder or name; code that comes with it "
            "is not run"
        ),
    ),
    Row(
        what="policy for a reward model",
        step="ppo",
        options="--reward-model other",
        message=_LANGUAGE_MODEL.format("other"),
    ),
    Row(
        what="reward model for a policy",
        step="sft",
        options="--model reward",
        message=_REWARD_MODEL,
    ),
    Row(what="reward model for a reward model's start", step="rm", options="--model reward", message=_REWARD_MODEL),
    Row(what="reward model for a start of PPO", step="ppo", options="--model reward", message=_REWARD_MODEL),
    Row(what="reward model among policies", step="eval", options="--models reward", message=_REWARD_MODEL),
    Row(what="reward model for GPT", step="files", options="--model reward", message=_REWARD_MODEL),
    Row(
        what="classifier of two classes",
        step="ppo",
        make=edited("reward/config.json", num_labels=2, id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1}),
        message="reward: found a head of 2 outputs, accepted is a reward model's of 1",
    ),
    Row(
        what="policy that says it has one label",
        step="eval",
        options="--reward-model labelled",
        make=lambda: [
            shutil.copytree("other", "labelled"),
            edited("labelled/config.json", num_labels=1, id2label={"0": "a"}, label2id={"a": 0})(),
        ],
        message=_LANGUAGE_MODEL.format("labelled"),
    ),
    Row(
        what="truncated reward model",
        step="ppo",
        make=cut("reward/model.safetensors", 5000),
        message="model reward: found weights that cannot be read (…), accepted are safetensors: nothing is unpickled",
    ),
    Row(
        what="NaN in the reward model",
        step="ppo",
        make=weights("reward", _nan),
        message="model reward: found weights that give NaN or infinity, accepted are finite ones",
    ),
    Row(
        what="bias that is a text",
        step="ppo",
        make=edited("reward/config.json", instructrl_score_bias="high"),
        message="reward/config.json: instructrl_score_bias: found 'high', accepted is a finite number",
    ),
    Row(
        what="bias that is NaN",
        step="eval",
        make=edited("reward/config.json", instructrl_score_bias=float("nan")),
        message="reward/config.json: instructrl_score_bias: found nan, accepted is a finite number",
    ),
]


ROWS = [*TOKENIZERS, *REWARD_MODELS]
