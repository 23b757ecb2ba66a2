"""Tokenizers: known facts of GPT-2's, words that come back, and special tokens that text cannot make."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from instructrl.data.encoding import Encoder, Limits
from instructrl.data.tokenizers import encode_text, gpt2_tokenizer, load_tokenizer, word_tokenizer

WORDS = ["w0", "b,", "<unk-ish>", "é.", "-"]


def test_gpt2_facts(public_data):
    tokenizer = gpt2_tokenizer(public_data("gpt2_bpe"))
    assert (len(tokenizer), tokenizer.eos_token_id) == (50257, 50256)
    # From OpenAI's encoder.py: "Hello world" is [15496, 995], a space before a word belongs to its token.
    assert encode_text(tokenizer, "Hello world") == [15496, 995]
    text = "Tabs\tand\n\n lines, \u2028 naïve 日本 🙂 don't  stop "
    assert tokenizer.decode(encode_text(tokenizer, text)) == text
    assert tokenizer.decode([15496, 50256]) == "Hello<|endoftext|>"


def test_gpt2_of_every_byte(public_data):
    tokenizer = gpt2_tokenizer(public_data("gpt2_bpe"))

    @given(st.text(max_size=40))
    def comes_back(text):
        ids = encode_text(tokenizer, text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.eos_token_id not in ids

    comes_back()


def test_gpt2_is_the_same_after_saving(public_data, tmp_path):
    tokenizer = gpt2_tokenizer(public_data("gpt2_bpe"))
    tokenizer.save_pretrained(tmp_path)
    text = "The quick <|endoftext|> fox's 12345  jumps ."
    loaded = load_tokenizer(tmp_path)
    assert encode_text(loaded, text) == encode_text(tokenizer, text)
    assert loaded.eos_token_id == 50256
    assert loaded.decode(encode_text(loaded, text)) == text
    assert encode_text(load_tokenizer(public_data("gpt2_bpe")), text) == encode_text(tokenizer, text)


@pytest.mark.parametrize("saved", [False, True])
def test_words(saved, tmp_path):
    tokenizer = word_tokenizer(WORDS)
    if saved:
        tokenizer.save_pretrained(tmp_path)
        tokenizer = load_tokenizer(tmp_path)
    assert (len(tokenizer), tokenizer.unk_token_id, tokenizer.eos_token_id) == (7, 0, 6)
    assert encode_text(tokenizer, "w0 -\nb, other <|endoftext|> <unk> w0<|endoftext|>") == [1, 5, 2, 0, 0, 0, 0]

    @given(st.lists(st.sampled_from(WORDS)))
    def comes_back(words):
        assert tokenizer.decode(encode_text(tokenizer, " ".join(words))) == " ".join(words)

    comes_back()
    assert tokenizer.decode([1, 6]) == "w0 <|endoftext|>"
    assert tokenizer.decode([1, 6], skip_special_tokens=True) == "w0"


@pytest.mark.parametrize("words", [["a", "a"], ["<unk>"], ["<|endoftext|>"], ["a b"], [""], ["a\n"]])
def test_words_that_cannot_be(words):
    with pytest.raises(ValueError, match="words: found"):
        word_tokenizer(words)


def test_a_special_token_that_the_vocabulary_itself_matches_is_lost():
    """The case of SentencePiece: `</s>` is a piece like others, so that splitting special tokens is not enough."""
    inner = Tokenizer(models.WordLevel({"</s>": 0, "a": 1, "[UNK]": 2}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="[UNK]")
    assert encode_text(tokenizer, "a </s> b a") == [1, 2, 1]


def test_an_unknown_token_that_is_the_end_of_text_is_lost(public_data):
    tokenizer = gpt2_tokenizer(public_data("gpt2_bpe"))
    tokenizer.unk_token = tokenizer.eos_token
    assert 50256 not in encode_text(tokenizer, "a<|endoftext|>b")


def byte_pairs(**roles):
    """Every byte is a token, as in GPT-2's vocabulary, and two words are longer ones; the ids are in that order."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("\u0120", "the")]
    vocabulary = {token: number for number, token in enumerate([*letters, "th", "the", "\u0120the"])}
    inner = Tokenizer(models.BPE(vocabulary, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, clean_up_tokenization_spaces=False, **{"eos_token": "<|endoftext|>", **roles}
    )


def whole_words(**roles):
    """One token a word; the names of control tokens are words of the vocabulary like the others."""
    inner = Tokenizer(models.WordLevel({w: n for n, w in enumerate(["</s>", "the", "!", "12", "[UNK]"])}, "[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, **{"eos_token": "</s>", "unk_token": "[UNK]", **roles})


ROLES = ["pad_token", "bos_token", "sep_token", "cls_token", "mask_token", "extra_special_tokens"]


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("make", [byte_pairs, whole_words])
@pytest.mark.parametrize("role", [*ROLES, "unk_token"])
def test_a_role_that_a_word_fills_takes_nothing_from_texts(role, make, saved, tmp_path):
    for word in ("!", "the", "12") if make is whole_words else ("!", "the"):
        tokenizer = make(**{role: [word] if role == "extra_special_tokens" else word})
        if saved:
            tokenizer.save_pretrained(tmp_path)
            tokenizer = load_tokenizer(tmp_path)
        text = "the 12 ! the the !"
        assert tokenizer.decode(encode_text(tokenizer, text)) == text
        assert tokenizer.eos_token_id not in encode_text(tokenizer, f"the {tokenizer.eos_token} !")


@pytest.mark.parametrize("make", [byte_pairs, whole_words])
@pytest.mark.parametrize("word", ["!", "the"])
def test_a_word_cannot_end_responses(make, word, tmp_path):
    message = rf"eos_token: found '{word}', a word of texts, accepted is a token that no text has"
    with pytest.raises(ValueError, match=message):
        Encoder(make(eos_token=word), Limits())
    make(eos_token=word).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_an_end(tmp_path):
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match=r"found no eos token in .*, accepted is one with eos_token set"):
        load_tokenizer(tmp_path)


def test_no_tokenizer(tmp_path):
    with pytest.raises(ValueError, match=r"found no encoder\.json in .*, accepted is a folder with encoder.json"):
        gpt2_tokenizer(tmp_path)
    (tmp_path / "encoder.json").write_text("{}")
    with pytest.raises(ValueError, match=r"found no <\|endoftext\|> in"):
        gpt2_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"found no such folder, accepted is a transformers folder or name"):
        load_tokenizer(tmp_path / "absent")
