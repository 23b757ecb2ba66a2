"""The ids of a tokenizer beside the embeddings of a network: which rows are used, and whether each id has one."""

import warnings
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def num_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest id of a token: above `len(tokenizer)` where ids in between belong to none."""
    return max(_tokens(tokenizer)) + 1


def check_vocabulary(network: PreTrainedModel, name: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError where the tokenizer has an id that the network has no embedding for. name: of the model."""
    tokens = _tokens(tokenizer)
    embeddings = [network.get_input_embeddings(), network.get_output_embeddings()]
    rows = min(len(module.weight) for module in embeddings if module is not None)
    wrong = min(tokens) if min(tokens) < 0 else max(tokens)
    if not 0 <= wrong < rows:
        raise ValueError(
            f"model {name}: found a tokenizer whose {tokens[wrong]!r} has the id {wrong}, for {rows} embeddings; "
            "accepted is one whose ids all have an embedding"
        )


def tell_of_holes(tokenizer: PreTrainedTokenizerBase) -> None:
    """Warn where ids below the largest belong to no token. They have an embedding, so a policy may sample them."""
    ids = _tokens(tokenizer)
    missing = max(ids) + 1 - len(ids)
    if missing:
        # Without the name of the model: a run loads many with the same tokenizer, and a text is shown once.
        warnings.warn(
            f"tokenizer: found {missing} ids below {max(ids)} that no token has; a policy may sample them, and texts "
            "leave them out",
            stacklevel=2,
        )


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that pads and is nothing else: not the end of text, and none that a text can produce. Or None."""
    token, number = tokenizer.pad_token, tokenizer.pad_token_id
    if not isinstance(number, int) or number in (tokenizer.eos_token_id, tokenizer.unk_token_id):
        return None
    in_text = tokenizer.encode(str(token), add_special_tokens=False, split_special_tokens=True)
    return None if number in in_text else number


def learn_every_embedding(network: nn.Module) -> None:
    """Let the token that the configuration names for padding learn, too: it may be the end of text."""
    for module in network.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None  # its one effect is that this row has no gradient


def _tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """By id. A special token has one even where the tokenizer does not count it among its entries."""
    special = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    return {**dict(special), **{number: token for token, number in tokenizer.get_vocab().items()}}
