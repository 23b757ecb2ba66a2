"""Texts to tensors: how sequences start."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from instructrl.data.encoding import Encoder, Limits, pack_documents
from instructrl.data.hygiene import limit_lengths
from instructrl.data.tokenizers import load_tokenizer
from instructrl.runs.standalone import check_tokenizer
from instructrl.types import Comparison, Document, Prompt


def prepending(*start: str, end: tuple[str, ...] = ()):
    """A tokenizer that puts tokens before a text, and behind it, where it is not told to leave that."""
    names = ["<s>", "[gMASK]", "<sop>", "</s>"]
    words = ["<unk>", *(f"w{number}" for number in range(9)), *names]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single=" ".join([*start, "$A", *end]), special_tokens=[(name, words.index(name)) for name in names]
    )
    inner.add_special_tokens(names)  # as files of tokenizers have it: not each of them has a role
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")
    return tokenizer, [words.index(name) for name in start]


TEMPLATES = {
    "Llama": (("<s>",), ()),
    "an end of text behind, too": (("<s>",), ("</s>",)),
    "an end of text behind alone": ((), ("</s>",)),
    "OPT": (("</s>",), ()),
    "two tokens": (("[gMASK]", "<sop>"), ()),
    "none": ((), ()),
}


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_sequence_starts_as_its_tokenizer_starts_one(template, saved, tmp_path):
    before, behind = TEMPLATES[template]
    tokenizer, start = prepending(*before, end=behind)
    if saved:
        tokenizer.save_pretrained(tmp_path)
        tokenizer = load_tokenizer(tmp_path)
    assert_starts(tokenizer, start)


def test_a_llama_starts_with_its_begin_of_text(tmp_path):
    vocabulary = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", "▁", "w", "1", "▁w", "▁w1"])}
    tokenizer = LlamaTokenizer(vocab=vocabulary, merges=[("▁", "w"), ("▁w", "1")], add_bos_token=True)
    tokenizer.save_pretrained(tmp_path)
    encoder = Encoder(load_tokenizer(tmp_path), Limits())
    assert encoder.prompt("w1") == tokenizer("w1").input_ids == [1, 7]
    assert encoder.response("w1") == [7, 2]


def test_a_tokenizer_that_encodes_nothing_is_refused():
    """What transformers makes of files that another class wrote: the vocabulary is there, and no text reaches it."""
    inner = Tokenizer(models.BPE({"w1": 0, "w2": 1}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")
    with pytest.raises(ValueError, match="found none of its 3 entries in a text"):
        Encoder(tokenizer, Limits())


def assert_starts(tokenizer, start):
    end = tokenizer.eos_token_id
    encoder = Encoder(tokenizer, Limits(max_prompt_tokens=3 + len(start), max_response_tokens=3))
    words = tokenizer.convert_tokens_to_ids(["w1", "w2", "w3"])
    assert encoder.prompt("w1 w2 w3") == start + words
    assert encoder.prompt("") == (start or [end])
    assert encoder.response("w1 w2") == [*words[:2], end]
    # What a text says is no start.
    assert encoder.prompt("<s> w1 </s>") == [*start, words[0]]
    # The limits count it.
    assert encoder.fits("w1 w2 w3")
    assert not encoder.fits("w1 w2 w3 w4")
    with pytest.raises(ValueError, match=f"found {4 + len(start)} tokens, accepted are up to {3 + len(start)}"):
        encoder.prompt("w1 w2 w3 w4")
    for limit, left in ((2 + len(start), 0), (3 + len(start), 1)):
        kept = limit_lengths([Prompt(text="w1 w2 w3")], tokenizer, max_prompt_tokens=limit, max_response_tokens=9)
        assert len(kept.records) == left
    # Sequences of every kind have it once.
    pairs = encoder.pairs(["w1", "w1 w2"], ["w3", ""])
    assert pairs.prompt[1].tolist() == start + words[:2]
    shared = encoder.shared_prompts([Comparison(prompt="w1", completions=("w2", "w3"), preferred=frozenset())])
    assert shared.tokens.tolist() == [[*start, words[0], words[1], end, words[2], end]]
    # Of plain text every document starts so, and an end of text stands between two.
    both = [Document(text="w1"), Document(text="w2 w3")]
    first, second = [*(start or [end]), words[0]], [*(start or [end]), *words[1:]]
    between = [] if end in (start or [end]) else [end]
    stream = first + between + second + between
    assert pack_documents(both, tokenizer, len(stream)).tolist() == [stream]


def test_another_start_is_another_tokenizer(tmp_path):
    ours, others = prepending()[0], prepending("<s>")[0]
    others.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="found another tokenizer than the model's"):
        check_tokenizer(str(tmp_path), Encoder(ours, Limits()))
    check_tokenizer(str(tmp_path), Encoder(others, Limits()))
