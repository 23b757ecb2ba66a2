"""What a single step needs when it is run by itself.

Everything that can be wrong with the input is found before `open_workspace`, the first that writes and removes files.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from instructrl.data.chat import ChatTemplate, template_of
from instructrl.data.encoding import Encoder, pack_documents
from instructrl.data.readers import read_corpus
from instructrl.data.settings import Limits
from instructrl.data.tokenizers import load_tokenizer
from instructrl.models.backbone import check_context, hide_loading_bars
from instructrl.models.policy import Policy
from instructrl.models.roles import ALL_WEIGHTS, load_policy, load_reward_model
from instructrl.models.scoring import RewardModel
from instructrl.models.settings import AdapterConfig
from instructrl.models.vocabulary import check_vocabulary
from instructrl.runs.folder import check_folder, open_folder
from instructrl.runs.journal import NO_SOURCES, Journal
from instructrl.runs.reading import Reader
from instructrl.runs.recipe import Recipe
from instructrl.runs.steps import Workspace
from instructrl.trainers.log import RunLog
from instructrl.trainers.settings import CheckpointConfig

_CHECKPOINTS = CheckpointConfig()


def load_start(model: str, recipe: Recipe, config: Any, block_tokens: int = 0) -> tuple[Encoder, Policy]:
    """The model that a step starts from, with its own tokenizer.

    config: the command's options, a dataclass with `out`, `fresh`, `chat_template` and `chat_date`. block_tokens: of
    the blocks of plain text, where the step uses any. Raises ValueError where `out` cannot be written to, or the model
    does not fit tokenizer or lengths.
    """
    hide_loading_bars()
    check_folder(Path(config.out), config, fresh=config.fresh)
    encoder = load_encoder(model, recipe.limits, config)
    policy = load_policy(model, encoder.tokenizer, recipe.adapter, in_parts=recipe.in_parts)
    check_context(policy.lm, recipe.limits.total)
    check_context(policy.lm, block_tokens, "block_tokens")
    return encoder, policy


def load_encoder(model: str, limits: Limits, config: Any) -> Encoder:
    """A model's tokenizer with the chat template in force. config: options with `chat_template` and `chat_date`."""
    tokenizer = load_tokenizer(model)
    return Encoder(tokenizer, limits, template_of(tokenizer, config.chat_template, config.chat_date))


def load_other_policy(
    path: str, encoder: Encoder, adapter: AdapterConfig = ALL_WEIGHTS, *, in_parts: bool = False
) -> Policy:
    """A policy that reads and writes the tokens of the first. adapter: what is to be learned of it. in_parts: as
    `load_policy` has it. Raises ValueError where it cannot."""
    check_tokenizer(path, encoder)
    policy = load_policy(path, encoder.tokenizer, adapter, in_parts=in_parts)
    check_context(policy.lm, encoder.limits.total)
    return policy


def load_judge(
    path: str, encoder: Encoder, adapter: AdapterConfig = ALL_WEIGHTS, *, in_parts: bool = False
) -> RewardModel:
    """A reward model that reads the tokens of the policy. adapter: what is to be learned of it. in_parts: as
    `load_policy` has it. Raises ValueError where it cannot."""
    check_tokenizer(path, encoder)
    reward_model = load_reward_model(path, adapter, in_parts=in_parts)
    check_context(reward_model.network, encoder.limits.total)
    check_vocabulary(reward_model.network, path, encoder.tokenizer)
    return reward_model


def read_blocks(corpus: str | None, encoder: Encoder, block_tokens: int, needed_by: str | None) -> Tensor | None:
    """Plain text in blocks [N, block_tokens]; None without a corpus.

    needed_by: the option that asks for plain text, where one does. Raises ValueError where there is none for it.
    """
    if corpus is not None:
        return pack_documents(read_corpus(corpus), encoder.tokenizer, block_tokens)
    if needed_by is not None:
        raise ValueError(f"corpus: found nothing, {needed_by} needs plain text: accepted is a file or hub:NAME")
    return None


def open_workspace(
    reader: Reader,
    recipe: Recipe,
    config: Any,
    checkpoints: CheckpointConfig = _CHECKPOINTS,
    sources: Mapping[str, str | None] = NO_SOURCES,
) -> Workspace:
    """The folder `config.out`, new or of the same command before, for a step whose input is read and found good.

    reader: that read the input; its notes are told. config: the command's options, a dataclass with an `out`, a `seed`
    and `fresh`; kept in the folder. sources: as `Journal` takes them.
    """
    folder = Path(config.out)
    log = RunLog(open_folder(folder, config, fresh=config.fresh), continued=True)
    for note in reader.notes:
        log.warn(note)
    return Workspace(
        folder=folder,
        log=log,
        encoder=reader.encoder,
        recipe=recipe,
        seed=config.seed,
        config=asdict(config),
        journal=Journal(folder, log, checkpoints, sources),
    )


def check_tokenizer(path: str, encoder: Encoder) -> None:
    """Raise ValueError where a model that is to read the same tokens has another tokenizer, or, unless the template is
    one for all of them, another chat template."""
    other = Encoder(load_tokenizer(path), encoder.limits)
    ours = Encoder(encoder.tokenizer, encoder.limits)
    same = other.tokenizer.get_vocab() == ours.tokenizer.get_vocab()
    if not same or (other.begin_of_text, other.end_of_text) != (ours.begin_of_text, ours.end_of_text):
        raise ValueError(f"{path}: found another tokenizer than the model's, accepted is a model with the same one")
    if encoder.chat is not None and not encoder.chat.given:
        found = ChatTemplate(other.tokenizer).text if other.tokenizer.chat_template else None
        if found != encoder.chat.text:
            what = "no chat template" if found is None else "another chat template than the model's"
            raise ValueError(
                f"{path}: found {what}, accepted is a model with the same one, or --chat-template FILE or none for all"
            )
