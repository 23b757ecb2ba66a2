"""Converters of public data sets, against the facts that their files are known to have."""

import gzip
import json
from itertools import chain, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructrl.data import public
from instructrl.data.hygiene import drop_common_prefixes, drop_overlap, prompt_text
from instructrl.data.public import first_words, paragraph_pieces
from instructrl.data.rows import DataError
from instructrl.types import Comparison, Conversation


def test_finegrained(public_data):
    folder = public_data("finegrained_qa_feedback_k4")
    comparisons = public.finegrained_qa_comparisons(folder).records
    assert len(comparisons) == 500
    assert {len(row.completions) for row in comparisons} == {4}
    assert sum(len(row.preferred) for row in comparisons) == 2616
    assert sum(len(row.preferred) == 6 for row in comparisons) == 298
    assert sum(not row.preferred for row in comparisons) == 12
    # Ties that are no equivalence: some verdicts are no ranking of four, even with ties.
    rankings = {Comparison.pairs_from_ranks(ranks) for ranks in product(range(4), repeat=4)}
    assert len(rankings) == 75  # the ordered Bell number of 4
    assert sum(row.preferred not in rankings for row in comparisons) == 22
    demonstrations = public.finegrained_qa_demonstrations(folder, max_passage_words=50).records
    assert len({row.prompt for row in demonstrations}) == 500
    assert max(len(row.prompt.split()) for row in demonstrations) <= 50 + 40
    assert all(row.completion for row in demonstrations)


def test_gsm8k(public_data):
    folder = public_data("gsm8k")
    train = public.gsm8k_demonstrations(folder).records
    assert len(train) == 7473
    assert all("\n#### " in row.completion for row in train)
    comparisons = public.gsm8k_comparisons(folder).records
    assert len(comparisons) == 1319
    assert sum(bool(row.preferred) for row in comparisons) == 731
    assert sum(len(row.preferred) for row in comparisons) == 2429
    test = public.gsm8k_demonstrations(folder, split="test").records
    assert {row.prompt for row in comparisons} == {row.prompt for row in test}
    assert drop_overlap(comparisons, train).removed == 0


def test_hh(public_data):
    converted = public.hh_comparisons(public_data("hh_rlhf_harmless_test"))
    assert (len(converted.records), converted.dropped) == (2312, {})
    assert all(row.prompt.endswith("\n\nAssistant:") for row in converted.records)
    # In all but 5 pairs, only the last answer differs.
    assert sum("\n\nHuman:" in text for row in converted.records for text in row.completions) <= 10


def test_hh_as_messages(public_data):
    converted = public.hh_conversations(public_data("hh_rlhf_harmless_test"))
    assert converted.dropped == {"part before the last answer": 5, "turns that do not alternate": 4}
    assert len(converted.records) == 2312 - 9
    for row in converted.records:
        assert isinstance(row.prompt, Conversation)
        assert [message.role for message in row.prompt.messages][::2] == ["user"] * (len(row.prompt.messages) // 2 + 1)


def test_squality(public_data):
    folder = public_data("squality")
    demonstrations = public.squality_demonstrations(folder, max_story_words=100).records
    assert len(demonstrations) == 50 * 5 * 4
    assert max(len(row.prompt.split()) for row in demonstrations) <= 100 + 40
    assert len(public.squality_demonstrations(folder, split="dev").records) == 25 * 5 * 4
    # The question comes first, so that the questions about one story share no long prefix.
    assert len({prompt_text(row) for row in drop_common_prefixes(demonstrations).records}) > 100
    converted = public.squality_comparisons(folder)
    assert (len(converted.records), converted.dropped) == (60, {"question not published": 240})
    assert {len(row.completions) for row in converted.records} == {3}
    assert len({(row.user, row.labeler) for row in converted.records}) == 60
    documents = public.squality_documents(folder, max_chars=5000).records
    assert sum(len(document.text) for document in documents) > 1_500_000


def test_novels(public_data):
    folder = public_data("english_novels_pre1900")
    documents = public.novel_documents(folder, max_chars=8000).records
    assert len({document.source for document in documents}) == 3
    for name in {document.source for document in documents}:
        whole = (folder / f"{name}.txt").read_text(encoding="utf-8-sig").split()
        assert " ".join(d.text for d in documents if d.source == name).split() == whole
    assert all(len(document.text) <= 8000 or "\n\n" not in document.text for document in documents)


def test_pandalm_and_self_instruct(public_data):
    converted = public.pandalm_comparisons(public_data("pandalm_testset"))
    assert converted.dropped == {"response is no text": 18}
    assert len(converted.records) == 3 * (999 - 6)
    assert {len(row.preferred) for row in converted.records} == {0, 1}
    assert {row.labeler for row in converted.records} == {"annotator1", "annotator2", "annotator3"}
    # Empty responses stay. The source counts 54 in 999 pairs.
    assert sum(not text for row in converted.records for text in row.completions) == 3 * 54
    prompts = public.self_instruct_prompts(public_data("self_instruct")).records
    assert len(prompts) == 252
    # 166 of PandaLM's 170 instructions come from these 252; with their inputs, 162 are the same.
    asked = {row.prompt for row in converted.records}
    assert (len(asked), len(asked & {prompt.text for prompt in prompts})) == (170, 162)
    assert len({row.prompt for row in drop_overlap(converted.records, prompts).records}) <= 170 - 162
    assert len(public.self_instruct_demonstrations(public_data("self_instruct")).records) == 175


def test_the_majority_of_pandalm(public_data):
    converted = public.pandalm_majority(public_data("pandalm_testset"))
    assert len(converted.records) == len({row.prompt for row in converted.records}) == 170
    assert max(len(row.completions) for row in converted.records) == 12
    assert all(len(set(row.completions)) == len(row.completions) for row in converted.records)
    assert not any((j, i) in row.preferred for row in converted.records for i, j in row.preferred)
    # 888 of the 993 rows have a winner; those whose two responses are those of another row are one pair.
    assert sum(len(row.preferred) for row in converted.records) == 782


def test_who_is_preferred(tmp_path):
    """On rows made up after the published layouts: 1 = the first is better, 2 = the second, 0 = a tie."""
    row = {"question": "q", "passages": [["t"]], "preference": [1, 2, 0, 2, 0, 1]}
    row |= {f"prediction {number}": f"a{number}" for number in range(1, 5)}
    (tmp_path / "dev_feedback.json").write_text(json.dumps([row]))
    (record,) = public.finegrained_qa_comparisons(tmp_path).records
    assert record.preferred == {(0, 1), (2, 0), (2, 1), (2, 3)}

    solutions = {f"m{n}": {"solution": f"s{n}", "is_correct": right} for n, right in enumerate([False, True, False])}
    row = {"question": "q", "ground_truth": "g", **solutions}
    (tmp_path / "example_model_solutions.jsonl").write_text(json.dumps(row))
    (record,) = public.gsm8k_comparisons(tmp_path).records
    assert (record.completions, record.preferred) == (("s0", "s1", "s2"), {(1, 0), (1, 2)})

    row = {"instruction": "i", "input": "", "motivation_app": "m", "response1": "a", "response2": ""}
    row |= {"annotator1": 1, "annotator2": "2", "annotator3": 0}
    (tmp_path / "testset-v1.json").write_text(json.dumps([row, {**row, "response2": False}]))
    converted = public.pandalm_comparisons(tmp_path)
    assert [record.preferred for record in converted.records] == [{(0, 1)}, {(1, 0)}, set()]
    assert converted.dropped == {"response is no text": 3}
    rows = [{**row, "response2": text, **dict(zip(ANNOTATORS, votes, strict=True))} for text, votes in VOTES]
    (tmp_path / "testset-v1.json").write_text(json.dumps(rows))
    (record,) = public.pandalm_majority(tmp_path).records
    assert record.completions == ("a", "b", "c", "d", "")
    assert record.preferred == {(0, 1), (4, 0)}

    turn = "\n\nHuman: q\n\nAssistant:"
    rows = [(turn + " good", turn + " bad"), (turn + " same", turn + " same"), ("x", "y")]
    lines = [json.dumps({"chosen": chosen, "rejected": rejected}) for chosen, rejected in rows]
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    converted = public.hh_comparisons(tmp_path)
    assert [record.completions for record in converted.records] == [(" good", " bad"), (" same", " same")]
    assert [record.preferred for record in converted.records] == [{(0, 1)}, set()]
    assert converted.dropped == {"nothing in common": 1}
    dialogue = "\n\nHuman: q \n\nAssistant: a\n\nHuman: r\n\nAssistant:"
    rows += [(dialogue + " x ", dialogue + " x"), (turn + " a" + turn, turn + " b" + turn)]
    rows += [("\n\nHuman: p" + turn + " x", "\n\nHuman: p" + turn + " y")]
    lines = [json.dumps({"chosen": chosen, "rejected": rejected}) for chosen, rejected in rows]
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    converted = public.hh_conversations(tmp_path)
    assert converted.dropped == {
        "nothing in common": 1,
        "part before the last answer": 1,
        "turns that do not alternate": 1,
    }
    said = [[(message.role, message.content) for message in row.prompt.messages] for row in converted.records]
    assert said == [[("user", "q")]] * 2 + [[("user", "q"), ("assistant", "a"), ("user", "r")]]
    assert [row.completions for row in converted.records] == [("good", "bad"), ("same", "same"), ("x", "x")]
    assert [row.preferred for row in converted.records] == [{(0, 1)}, set(), set()]

    reviews = {"a": [2, 1], "b": [1, 3], "c": [3, 1]}
    answers = {
        name: {"response": name, "reviews": [{"worker_id": f"{n}", "overall-rank": r} for n, r in enumerate(ranks)]}
        for name, ranks in reviews.items()
    }
    row = {"passage-id": "7", "questions": {"0": answers, "1": answers}}
    (tmp_path / "human_eval_all_responses.jsonl").write_text(json.dumps(row))
    converted = public.squality_comparisons(tmp_path)
    assert [record.preferred for record in converted.records] == [{(1, 0), (1, 2), (0, 2)}, {(0, 1), (2, 1)}]
    assert converted.dropped == {"question not published": 2}


ANNOTATORS = ("annotator1", "annotator2", "annotator3")
# The second response and what the annotators say. Two of three win, and four of six where a pair stands twice.
VOTES = [("b", (1, 1, 2)), ("c", (1, 2, 0)), ("d", (1, 1, 0)), ("d", (2, 2, 0)), ("", (2, 0, 2)), ("a", (1, 1, 1))]

CONVERTERS = [getattr(public, name) for name in dir(public) if name.endswith(("_comparisons", "_demonstrations"))]
CONVERTERS += [public.hh_conversations, public.pandalm_majority]
CONVERTERS += [public.squality_documents, public.novel_documents, public.self_instruct_prompts]


@pytest.mark.parametrize("convert", CONVERTERS, ids=lambda convert: convert.__name__)
def test_another_folder(convert, tmp_path):
    with pytest.raises(DataError, match=f"{tmp_path}.*: found no .*, accepted is"):
        convert(tmp_path)


def test_a_broken_line_is_named(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"question": "q", "answer": "a"}\n{"question"\n')
    with pytest.raises(DataError, match=r"train\.jsonl:2: found Expecting ':' delimiter, accepted is JSON"):
        public.gsm8k_demonstrations(tmp_path)


TEXT = st.text(alphabet="ab \n\t", max_size=60)


@given(TEXT, st.integers(1, 10))
def test_first_words(text, max_words):
    short = first_words(text, max_words)
    assert text.startswith(short)
    assert short.split() == text.split()[:max_words]


@given(TEXT, st.integers(1, 30))
def test_pieces_have_every_word_and_no_more_characters_than_allowed(text, max_chars):
    pieces = paragraph_pieces(text, max_chars=max_chars)
    assert list(chain.from_iterable(piece.split() for piece in pieces)) == text.split()
    assert all(len(piece) <= max_chars or "\n\n" not in piece for piece in pieces)


def test_pieces_of_paragraphs():
    assert paragraph_pieces("aa\nbb\n\n \n\ncc\n\ndddddddd", max_chars=9) == ["aa\nbb\n\ncc", "dddddddd"]
    assert paragraph_pieces("\n".join(["x" * 10] * 30), max_chars=21) == ["x" * 10 + "\n" + "x" * 10] * 15
