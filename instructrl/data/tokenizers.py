"""Tokenizers: the paper's byte-level BPE, words for small worlds, and any that transformers loads.

Text of users never becomes a special token: `encode_text` is the only way from text to ids.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from instructrl.model_names import check_model_name, tokenizer_folder

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<unk>"
# A name between marks, as vocabularies have it ("Ġ" is a space of GPT-2's). Flags do not tell a control token from a
# word: a tokenizer makes special whatever has a role.
CONTROL_NAME = re.compile(r"Ġ?[^\w\s].*\w.*[^\w\s]", re.DOTALL)
# What transformers raises for the files of a tokenizer, by the ways in which they can be wrong.
_OF_A_TOKENIZER = (
    *(OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError),
    StrictDataclassError,
)


def gpt2_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The byte pair encoding of GPT-2 and GPT-3: 50,257 entries, end of text 50256.

    folder: holds `encoder.json` and `vocab.bpe`, as OpenAI published them. Raises ValueError where one is missing or
    `encoder.json` has no end of text.
    """
    try:
        vocabulary = json.loads(_published(folder, "encoder.json"))
    except ValueError as error:
        raise ValueError(f"{folder}/encoder.json: found {error}, accepted is the GPT-2 vocabulary as JSON") from None
    if not isinstance(vocabulary, dict) or END_OF_TEXT not in vocabulary:
        raise ValueError(f"encoder.json: found no {END_OF_TEXT} in {folder}, accepted is the GPT-2 vocabulary")
    lines = _published(folder, "vocab.bpe").split("\n")[1:]  # the first line is the version
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines) if right]
    for number, (left, right) in enumerate(merges, start=2):
        if not {left, right, left + right} <= vocabulary.keys():
            raise ValueError(
                f"{folder}/vocab.bpe:{number}: found {left!r} {right!r}, accepted are merges of encoder.json"
            )
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerBase:
    """One token a word. Ids: `<unk>` 0, then the words from 1 in their order, then the end of text.

    words: without whitespace, without repetition. Texts are split at whitespace, so that decoding gives back every
    text of known words with single spaces between them. Raises ValueError for other words.
    """
    vocabulary = {UNKNOWN: 0}
    for word in words:
        if not word or word.split() != [word]:
            raise ValueError(f"words: found {word!r}, accepted are words without whitespace")
        if word in vocabulary or word == END_OF_TEXT:
            raise ValueError(f"words: found {word!r} twice or reserved, accepted are words that differ")
        vocabulary[word] = len(vocabulary)
    # The end of text stays out of the model's own vocabulary: there, a user's "<|endoftext|>" would match it.
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, unk_token=UNKNOWN, clean_up_tokenization_spaces=False
    )


def load_tokenizer(path: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, by folder or name; of a folder with `encoder.json` and `vocab.bpe`, `gpt2_tokenizer`'s.

    Raises ValueError if there is none, or none with an end-of-text token, and as `check_model_name` does.
    """
    if (Path(path) / "encoder.json").is_file():
        return gpt2_tokenizer(path)
    check_model_name(path)
    path = tokenizer_folder(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=trust_remote_code)
    except _OF_A_TOKENIZER as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"tokenizer: found none at {path} ({reason}), accepted is a model folder or name; code that comes with it "
            "is not run"
        ) from error
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        # What transformers makes of a folder that has a config.json and no tokenizer.
        raise ValueError(f"tokenizer: found no vocabulary in {path}, accepted is a folder with a tokenizer.json")
    end_of_text(tokenizer)
    return tokenizer


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends every response. Raises ValueError where there is none, or where texts have it."""
    token = tokenizer.eos_token_id
    if not isinstance(token, int):
        raise ValueError(
            f"tokenizer: found no eos token in {tokenizer.name_or_path or 'it'}, accepted is one with eos_token set "
            "(it ends every response)"
        )
    name = str(tokenizer.eos_token)
    if token in encode_text(tokenizer, name):
        raise ValueError(f"tokenizer: eos_token: found {name!r}, a word of texts, accepted is a token that no text has")
    return token


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text, none of which controls anything whatever the text says.

    The names of control tokens in the text are encoded as plain text. A tokenizer whose own vocabulary matches such
    a name (SentencePiece unigrams can) loses it instead. A word that was given a special role, as padding for one,
    stays the word that it is: only what stands between marks, such as `</s>`, is the name of a control token. The
    unknown token may appear.
    """
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
    names = zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True)
    named = {token for token, name in names if CONTROL_NAME.fullmatch(name)}
    if not named:
        return ids
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    lost = named & special.union(tokenizer.all_special_ids)
    if tokenizer.unk_token_id != tokenizer.eos_token_id:
        lost.discard(tokenizer.unk_token_id)
    return [token for token in ids if token not in lost]


def _published(folder: str | Path, name: str) -> str:
    path = Path(folder) / name
    if not path.is_file():
        raise ValueError(f"folder: found no {name} in {folder}, accepted is a folder with encoder.json and vocab.bpe")
    return path.read_text(encoding="utf-8")
