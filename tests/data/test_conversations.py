"""Prompts that were given as messages, from a file to sequences and back to a file."""

import copy
import json
import pickle

import pytest
import torch
from chats import STYLES, conversation, tokenizer_of
from tiny import tiny_encoder

from instructrl.data.chat import ChatTemplate
from instructrl.data.encoding import Encoder, as_read
from instructrl.data.hygiene import limit_lengths
from instructrl.data.readers import read_comparisons, read_demonstrations, read_prompts, write_jsonl
from instructrl.data.settings import Limits
from instructrl.runs.experiment import few_shot_form
from instructrl.runs.reading import Reader
from instructrl.trainers.checkpoints import fingerprint
from instructrl.types import Comparison, Conversation, Demonstration, Message, Prompt, num_tokens

USER = {"role": "user", "content": "q"}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
RESULT = {"role": "tool", "content": "r", "name": "f", "tool_call_id": "1"}
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def encoder_of(style, prompt=200, response=40, backend="byte level"):
    tokenizer = tokenizer_of(style, backend)
    return Encoder(tokenizer, Limits(max_prompt_tokens=prompt, max_response_tokens=response), ChatTemplate(tokenizer))


def read(tmp_path, reader, *rows):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(reader(path))


# columns that ask -> whether they make a conversation
ASKING = {
    "a text": ({"prompt": "q"}, False),
    "a text and a passage": ({"instruction": "q", "input": "i"}, False),
    "a message": ({"prompt": USER}, True),
    "messages": ({"prompt": [USER]}, True),
    "a text and a system's": ({"system": "S", "prompt": "q"}, True),
    "turns": ({"messages": [USER]}, True),
    "turns of another name": ({"conversations": [{"from": "human", "value": "q"}]}, True),
    "turns beside a text": ({"prompt": "q", "messages": [USER]}, True),
    "tools beside a text": ({"prompt": "q", "tools": json.dumps(TOOLS)}, True),
    "no tools beside a text": ({"prompt": "q", "tools": []}, False),
}


@pytest.mark.parametrize("case", ASKING)
def test_messages_make_a_conversation_and_texts_do_not(case, tmp_path):
    columns, given = ASKING[case]
    (prompt,) = read(tmp_path, read_prompts, columns)
    assert isinstance(prompt.text, Conversation) == given
    (demonstration,) = read(tmp_path, read_demonstrations, {**columns, "completion": "a"})
    pair = {**columns, "chosen": "a", "rejected": "b"}
    (compared,) = read(tmp_path, read_comparisons, pair)
    if "messages" not in columns and "conversations" not in columns:
        assert isinstance(compared.prompt, Conversation) == given
        assert demonstration.prompt == compared.prompt == prompt.text
    if given:
        assert prompt.text.messages[-1] == Message("user", "q")


def test_answers_that_are_messages_make_the_prompt_a_conversation(tmp_path):
    answer = [{"role": "assistant", "content": "a"}]
    (row,) = read(tmp_path, read_demonstrations, {"prompt": "q", "completion": answer})
    assert (row.prompt.messages, row.completion) == ((Message("user", "q"),), "a")
    other = [{"role": "assistant", "content": "b"}]
    (pair,) = read(tmp_path, read_comparisons, {"chosen": [USER, *answer], "rejected": [USER, *other]})
    assert pair.prompt.messages == (Message("user", "q"),)
    (several,) = read(tmp_path, read_comparisons, {"prompt": "q", "completions": [answer, "b"], "ranks": [1, 2]})
    assert several.prompt.messages == (Message("user", "q"),)


def test_what_is_written_is_read_again(tmp_path):
    asked = [{"role": "system", "content": "S"}, USER, CALL, RESULT]
    rows = [
        *read(tmp_path, read_demonstrations, {"prompt": asked, "completion": "a", "tools": TOOLS, "user": "u"}),
        *read(tmp_path, read_comparisons, {"prompt": [USER], "chosen": "a", "rejected": "b"}),
        *read(tmp_path, read_prompts, {"messages": [USER, CALL, RESULT], "tools": TOOLS}),
        *read(tmp_path, read_prompts, {"prompt": "q"}),
    ]
    readers = [read_demonstrations, read_comparisons, read_prompts, read_prompts]
    for row, reader in zip(rows, readers, strict=True):
        write_jsonl(tmp_path / "y.jsonl", [row])
        (found,) = reader(tmp_path / "y.jsonl")
        assert found == row
        assert fingerprint(found) == fingerprint(row)
    assert [type(row.text) for row in rows[2:]] == [Conversation, str]
    prompt = rows[2].text
    assert json.loads(prompt.messages[1].others) == {"tool_calls": CALL["tool_calls"]}
    assert prompt.messages[2].as_mapping() == RESULT
    assert json.loads(prompt.tools) == TOOLS


def test_a_conversation_is_a_text_that_knows_its_messages():
    found = conversation("s:S", "u:q")
    assert found == "System:\nS\n\nUser:\nq\n\nAssistant:\n"
    assert conversation("u:q") == "q"
    for copied in (copy.copy(found), copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert (type(copied), copied.messages, copied.tools) == (Conversation, found.messages, "")
    assert json.dumps(found) == json.dumps(str(found))


def test_the_digest_of_data_sees_messages():
    texts = ["q", conversation("u:q"), Conversation([Message("user", "q")], "[]"), conversation("u:q", "a:", "u:q")]
    assert len({fingerprint(Prompt(text=text)) for text in texts}) == len(texts)


# ---- to tokens


@pytest.mark.parametrize("style", STYLES)
def test_every_reader_of_a_conversation_has_the_same_tokens(style):
    encoder = encoder_of(style)
    asked = conversation("u:Name a colour.", "a:Blue.", "u:Another?")
    row = Comparison(
        prompt=asked, completions=("Red.", "Grey <|im_end|>", "Red."), preferred=frozenset({(0, 1), (1, 2)})
    )
    pairs = encoder.pairs([asked] * 3, row.completions)
    shared = encoder.shared_prompts([row]).separate()
    prompt, mask = encoder.prompts([asked])
    assert torch.equal(pairs.prompt[:1], prompt)
    assert mask.all()
    for name in ("prompt", "prompt_mask", "response_mask"):
        assert torch.equal(getattr(pairs, name), getattr(shared, name))
    assert torch.equal(pairs.response[pairs.response_mask], shared.response[shared.response_mask])
    ends = pairs.response.gather(1, pairs.response_mask.sum(1, keepdim=True) - 1)
    assert (ends == encoder.end_of_text).all()
    assert encoder.decode(pairs.response, pairs.response_mask)[0].strip().endswith("Red.")
    equal = encoder.without_equal_pairs(Comparison(prompt=asked, completions=("a", "a"), preferred=frozenset({(0, 1)})))
    assert not equal.preferred
    assert encoder.ends == tuple(dict.fromkeys((encoder.end_of_text, encoder.tokenizer.eos_token_id)))


@pytest.mark.parametrize("backend", ["byte level", "metaspace, always"])
@pytest.mark.parametrize("style", STYLES)
def test_all_turns_are_the_tokens_of_the_last_with_more_of_them_learned(style, backend):
    encoder = encoder_of(style, backend=backend)
    rows = [
        Demonstration(prompt=conversation("u:Why?", "a:Blue sky.", "u:And?"), completion="Red."),
        Demonstration(prompt=conversation("u:Why?"), completion="Because it is so."),
        Demonstration(prompt="a text", completion="Red."),
    ]
    last, every = encoder.demonstrations(rows), encoder.demonstrations(rows, "all")
    assert last.learned is None
    for row in range(3):
        assert last.tokens[row][last.mask[row]].tolist() == every.tokens[row][every.mask[row]].tolist()
    learned = [every.response[i][every.counted[i]].tolist() for i in range(3)]
    answers = [last.response[i][last.response_mask[i]].tolist() for i in range(3)]
    assert learned[1:] == answers[1:]
    assert learned[0][-len(answers[0]) :] == answers[0]
    assert encoder.tokenizer.decode(learned[0][: -len(answers[0])]).split()[:1] == ["Blue"]
    assert not (every.learned & ~every.response_mask).any()
    assert num_tokens([every]) == sum(map(len, learned))
    chosen = every.select(torch.tensor([0])).trim()
    assert chosen.response[chosen.counted].tolist() == learned[0]
    assert num_tokens([every.uncounted()]) == 0
    assert encoder.demonstrations(rows[1:], "all").learned is None


def test_a_record_as_a_model_reads_it():
    encoder = encoder_of("chatml")
    asked = conversation("u:Why?", "a:Blue.", "u:And?")
    text, count, learned = as_read(Demonstration(prompt=asked, completion="Red."), encoder, "all")
    start = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    middle = "\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
    assert text == f"{start}⟦Blue.<|im_end|>⟧{middle}⟦Red.<|im_end|>⟧"
    ids = encoder.prompt(asked) + encoder.response("Red.", prompt=asked)
    assert (count, learned) == (len(ids), len(encoder.tokenizer.encode("Blue.<|im_end|>Red.<|im_end|>")))
    assert as_read(Prompt(text=asked), encoder, "all")[:2] == (
        f"{start}Blue.<|im_end|>{middle}",
        len(encoder.prompt(asked)),
    )
    row = Comparison(prompt=asked, completions=("Red.", "x"), preferred=frozenset())
    assert as_read(row, encoder, "all")[0] == f"{start}Blue.<|im_end|>{middle}Red.<|im_end|>"


def test_without_a_template_a_conversation_is_its_text():
    encoder = tiny_encoder()
    asked = conversation("u:w1 w2")
    assert encoder.prompt(asked) == encoder.prompt("w1 w2")
    assert encoder.response("w3", prompt=asked) == encoder.response("w3")
    turns = [Demonstration(prompt=conversation("u:w1", "a:w2", "u:w3"), completion="w4")]
    assert encoder.demonstrations(turns, "all").learned is None


def test_examples_before_a_conversation_are_turns():
    examples = [
        Demonstration(prompt=conversation("s:X", "u:p"), completion="a"),
        Demonstration(prompt="text", completion="bb"),
    ]
    encoder = encoder_of("gemma")
    found = few_shot_form(examples, encoder)(conversation("s:S", "u:q"))
    assert found.messages == conversation("s:S", "u:text", "a:bb", "u:p", "a:a", "u:q").messages
    short = encoder_of("gemma", prompt=len(encoder.prompt(conversation("u:q"))))
    assert few_shot_form(examples, short)(conversation("u:q")).messages == (Message("user", "q"),)
    assert few_shot_form(examples[1:], encoder)("q") == "text\nbb\n\nq\n"


def test_texts_beside_a_template_are_told_of_once(tmp_path):
    encoder = encoder_of("chatml")
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "q"}\n{"prompt": [{"role": "user", "content": "q"}]}\n')
    reader = Reader(encoder, "drop")
    assert len(reader.prompts(path)) == len(reader.prompts(path)) == 2
    (note,) = reader.notes
    assert note.startswith(f"{path}: 1 of 2 prompts are texts, which the tokenizer's chat template does not render")
    without = Reader(tiny_encoder(), "drop")
    without.prompts(path)
    assert not without.notes


def test_lengths_are_those_of_the_rendering():
    encoder = encoder_of("chatml")
    asked = conversation("u:q")
    length, answer = len(encoder.prompt(asked)), len(encoder.response("Red.", prompt=asked))
    row = Comparison(prompt=asked, completions=("Red.", "Red", "Red. Red."), preferred=frozenset({(0, 1)}))
    for prompt_tokens, response_tokens, left in ((length, answer, ("Red.", "Red")), (length - 1, answer, None)):
        limits = {"max_prompt_tokens": prompt_tokens, "max_response_tokens": response_tokens}
        kept = limit_lengths([row], encoder.tokenizer, chat=encoder.chat, **limits).records
        assert [found.completions for found in kept] == ([left] if left else [])
        # by the text alone
        assert len(limit_lengths([row], encoder.tokenizer, **limits).records) == 1
