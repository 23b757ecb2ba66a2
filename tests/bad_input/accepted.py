"""Input that looks wrong and is accepted on purpose, and what comes of it: a second, small table with a check a row."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from table import STEPS, edited, rows
from tiny import tiny_encoder

from instructrl import cli
from instructrl.data.encoding import preferred_pairs
from instructrl.data.readers import read_comparisons, read_demonstrations, read_prompts
from instructrl.data.tokenizers import encode_text, load_tokenizer
from instructrl.models.policy import Policy
from instructrl.ops import logprobs, ppo, ranking


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """what: the input. happens: in words, for the page. check: raises where something else happens; its working folder
    is that of `table.make_world`."""

    what: str
    happens: str
    check: Callable[[], object]


def _special_tokens() -> None:
    encoder = tiny_encoder()
    end = encoder.tokenizer.eos_token
    assert encoder.end_of_text not in encoder.prompt(f"w1 {end} w2")
    assert encoder.response(f"w1 {end} w2").count(encoder.end_of_text) == 1


def _word_for_padding() -> None:
    tokenizer = tiny_encoder().tokenizer
    before = encode_text(tokenizer, "w1 w3 w2")
    tokenizer.pad_token = "w3"
    assert encode_text(tokenizer, "w1 w3 w2") == before


def _empty_response() -> None:
    rows({"prompt": "w1", "completion": ""})()
    (row,) = read_demonstrations("rows.jsonl")
    encoder = tiny_encoder()
    assert encoder.demonstrations([row]).response.tolist() == [[encoder.end_of_text]]


def _prompt_of_blanks() -> None:
    rows({"prompt": " "})()
    encoder = tiny_encoder()
    assert encoder.prompt(read_prompts("rows.jsonl")[0].text) == [encoder.end_of_text]


def _long_response() -> None:
    encoder = tiny_encoder()
    ids = encoder.response("w1 " * 20)
    assert len(ids) == encoder.limits.max_response_tokens
    assert encoder.end_of_text not in ids


def _unknown_words() -> None:
    encoder = tiny_encoder()
    assert encoder.prompt("nobody knows") == [encoder.tokenizer.unk_token_id] * 2


def _tied_row() -> None:
    rows({"prompt": "w1", "completions": ["w2", "w3"], "ranks": [1, 1]})()
    row = read_comparisons("rows.jsonl")[0]
    loss = ranking.pairwise_ranking_loss(torch.randn(1, 2), preferred_pairs([row]))
    assert (float(loss.loss_sum), int(loss.num_pairs)) == (0.0, 0)


def _cycle() -> None:
    rows({"prompt": "w1", "completions": ["w2", "w3", "w4"], "preferences": [[0, 1], [1, 2], [2, 0]]})()
    assert len(read_comparisons("rows.jsonl")[0].preferred) == 3


def _huge_ranks() -> None:
    rows({"prompt": "w1", "completions": ["w2", "w3"], "ranks": [10**400, -1.5]})()
    assert read_comparisons("rows.jsonl")[0].preferred == {(1, 0)}


def _duplicates() -> None:
    rows(*[{"prompt": "w1 w2", "completion": "w3", "user": str(user)} for user in (1, 1, 2)])()
    assert cli.main(["data", "check", "demonstrations", "rows.jsonl"]) == 0
    options = "--min-prefix-chars 3 --valid-fraction 0 --test-fraction 0"
    assert cli.main(f"data prepare --tokenizer model --demonstrations rows.jsonl --out new {options}".split()) == 0
    assert [row.user for row in read_demonstrations("new/demonstrations.train.jsonl")] == ["1", "2"]


def _long_line() -> None:
    Path("rows.jsonl").write_text(json.dumps({"prompt": "w1 " * 3_500_000}) + "\n")
    assert cli.main(["data", "check", "prompts", "rows.jsonl"]) == 0


def _other_columns() -> None:
    rows({"prompt": "w1", "completion": "w2", "id": 7, "tags": [], "note": None})()
    assert read_demonstrations("rows.jsonl")[0].completion == "w2"


def _blank_lines_and_mark() -> None:
    Path("rows.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "w1"}\r\n\r\n  \n{"prompt": "w2"}')
    assert [row.text for row in read_prompts("rows.jsonl")] == ["w1", "w2"]


def _demonstrations_for_prompts() -> None:
    assert cli.main(["data", "check", "prompts", "demonstrations.jsonl"]) == 0
    assert [row.text for row in read_prompts("demonstrations.jsonl")] == [
        row.prompt for row in read_demonstrations("demonstrations.jsonl")
    ]


def _number_for_user() -> None:
    rows({"prompt": "w1", "user": 17})()
    assert read_prompts("rows.jsonl")[0].user == "17"


def _no_pad_token() -> None:
    assert load_tokenizer("model").pad_token is None
    assert cli.main(STEPS["sft"].split()) == 0


def _unknown_class() -> None:
    edited("model/tokenizer_config.json", tokenizer_class="MineTokenizer")()
    assert load_tokenizer("model").get_vocab() == tiny_encoder().tokenizer.get_vocab()


def _more_embeddings() -> None:
    policy = Policy.load("model")
    policy.lm.resize_token_embeddings(64)
    policy.save("model", tiny_encoder().tokenizer)
    assert cli.main(STEPS["sft"].split()) == 0


def _option_twice() -> None:
    assert cli.main(["run", "smoke", "--dry-run", "--seed", "1", "--seed", "7"]) == 0


def _garbage_under_the_mask() -> None:
    logits, tokens = torch.full((1, 2, 3), float("nan")), torch.tensor([[-100, 1]])
    logits[0, 1] = 0.0
    found = logprobs.token_logprobs(logits, tokens, mask=torch.tensor([[False, True]]))
    assert found.isfinite().all()
    assert found[0, 0] == 0


def _nothing_counts() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    loss = ppo.clipped_policy_loss(x, x.detach(), x.detach(), torch.zeros(2, 3, dtype=torch.bool)).loss
    loss.backward()
    assert float(loss.detach()) == 0
    assert not x.grad.any()


def _mask_of_numbers() -> None:
    logits, tokens = torch.randn(1, 3, 5), torch.tensor([[1, 2, 4]])
    expected = logprobs.token_logprobs(logits, tokens, mask=torch.tensor([[True, False, True]]))
    for dtype in (torch.float32, torch.int64):
        mask = torch.tensor([[1, 0, 1]], dtype=dtype)
        assert torch.equal(logprobs.token_logprobs(logits, tokens, mask=mask), expected)


def _labels_of_minus_100() -> None:
    logits = torch.randn(1, 3, 5)
    expected = logprobs.token_logprobs(logits, torch.tensor([[1, 2, 4]]), mask=torch.tensor([[True, False, True]]))
    assert torch.equal(logprobs.token_logprobs(logits, torch.tensor([[1, -100, 4]])), expected)


ROWS = [
    Accepted(
        what="special tokens inside a text",
        happens="they are encoded as plain text; the one end-of-text token of a response is our own",
        check=_special_tokens,
    ),
    Accepted(
        what="word that a tokenizer uses for padding, or in another role but the end of text",
        happens="it stays in every text",
        check=_word_for_padding,
    ),
    Accepted(what="empty response", happens="it is its end-of-text token alone", check=_empty_response),
    Accepted(what="prompt of blanks alone", happens="it is read as the end-of-text token", check=_prompt_of_blanks),
    Accepted(
        what="response over the limit",
        happens="it is cut there, and then has no end-of-text token",
        check=_long_response,
    ),
    Accepted(what="words that a tokenizer does not know", happens="they are its unknown token", check=_unknown_words),
    Accepted(
        what="comparison whose ranks are all equal",
        happens="it counts for nothing, unless there are no others",
        check=_tied_row,
    ),
    Accepted(what="preferences in a circle", happens="all of them are learned from", check=_cycle),
    Accepted(what="ranks beyond the range of float", happens="they are compared as they are", check=_huge_ranks),
    Accepted(
        what="rows and users that come twice",
        happens="`data check` takes them; `data prepare` keeps each row once, and one of the prompts that begin alike",
        check=_duplicates,
    ),
    Accepted(
        what="line of 10 MB", happens="it is a row; a step refuses its prompt if it is too long", check=_long_line
    ),
    Accepted(what="columns that nothing needs", happens="they are not read", check=_other_columns),
    Accepted(
        what="byte order mark, blank lines, no newline at the end, lines that end in CR LF",
        happens="they are passed over, and lines keep their numbers",
        check=_blank_lines_and_mark,
    ),
    Accepted(
        what="demonstrations where prompts are asked for",
        happens="their prompts are used; comparisons are refused by PPO, whose reward model has learned them",
        check=_demonstrations_for_prompts,
    ),
    Accepted(what="whole number for a user", happens="it is its name", check=_number_for_user),
    Accepted(what="tokenizer without a padding token", happens="nothing needs one", check=_no_pad_token),
    Accepted(
        what="tokenizer class that transformers does not have",
        happens="tokenizer.json says everything",
        check=_unknown_class,
    ),
    Accepted(
        what="more embeddings than tokens",
        happens="it trains: models are padded to round sizes",
        check=_more_embeddings,
    ),
    Accepted(what="option twice", happens="the last one counts", check=_option_twice),
    Accepted(
        what="NaN and ids out of range under a mask",
        happens="they are not read",
        check=_garbage_under_the_mask,
    ),
    Accepted(
        what="mask of numbers that are 0 and 1",
        happens="it is the mask; any other number is refused",
        check=_mask_of_numbers,
    ),
    Accepted(
        what="labels of -100 without a mask",
        happens="they do not count; where a mask says that they do, they are refused",
        check=_labels_of_minus_100,
    ),
    Accepted(what="mask under which nothing counts", happens="loss and gradient are 0", check=_nothing_counts),
]
