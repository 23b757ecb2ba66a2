"""The paper's cleaning: what each step leaves, that it keeps the order, and that it counts."""

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructrl.data.hygiene import (
    cap_per_user,
    drop_common_prefixes,
    drop_overlap,
    limit_lengths,
    prompt_text,
    remove_personal_data,
    select_completions,
    source_of,
    split_by_user,
)
from instructrl.types import Comparison, Demonstration, Prompt

PROMPTS = st.lists(
    st.builds(
        Prompt,
        text=st.text(alphabet="ab", min_size=1, max_size=6),
        user=st.sampled_from(["", "u", "v", "w"]),
        source=st.sampled_from(["s", "t"]),
    ),
    max_size=30,
)
FRACTIONS = {"train": 0.5, "valid": 0.3, "test": 0.2}


def comparison(prompt, *completions, pairs=((0, 1),), **groups):
    return Comparison(prompt=prompt, completions=completions, preferred=frozenset(pairs), **groups)


def assert_part(kept, records):
    """What is left is in the order it came in, and the count is right."""
    rest = iter(records)
    assert all(any(record is other for other in rest) for record in kept.records)
    assert kept.removed == len(records) - len(kept.records)


@given(PROMPTS, st.integers(1, 7))
def test_prefixes_one_stays_of_each(prompts, length):
    kept = drop_common_prefixes(prompts, min_prefix_chars=length)
    assert_part(kept, prompts)

    def alike(first, second):
        shared = 0
        while shared < min(len(first), len(second)) and first[shared] == second[shared]:
            shared += 1
        return first == second or shared >= length

    left = [prompt.text for prompt in kept.records]
    assert not any(alike(text, other) for place, text in enumerate(left) for other in left[:place])
    # The first of each kind is the one that stays.
    for place, prompt in enumerate(prompts):
        earlier = any(alike(prompt.text, other.text) for other in prompts[:place])
        assert earlier == (not any(prompt is record for record in kept.records))
    assert sum(kept.reasons.values()) == kept.removed


def test_prefixes_several_completions_of_a_prompt_stay():
    long = "x" * 200
    records = [
        Demonstration(prompt=long, completion="a"),
        Demonstration(prompt=long, completion="b"),
        Demonstration(prompt=long, completion="a"),
        Demonstration(prompt=long + "y", completion="c"),
    ]
    kept = drop_common_prefixes(records)
    assert kept.records == records[:2]
    assert kept.reasons == {"repeated": 1, "common prefix": 1}
    with pytest.raises(ValueError, match="min_prefix_chars: found 0"):
        drop_common_prefixes(records, min_prefix_chars=0)


@given(PROMPTS, st.integers(1, 4))
def test_cap(prompts, limit):
    kept = cap_per_user(prompts, limit=limit)
    assert_part(kept, prompts)
    for user in "uvw":
        before = dict.fromkeys(prompt.text for prompt in prompts if prompt.user == user)
        after = dict.fromkeys(prompt.text for prompt in kept.records if prompt.user == user)
        assert list(after) == list(before)[:limit]
    assert [prompt for prompt in prompts if not prompt.user] == [prompt for prompt in kept.records if not prompt.user]


def test_cap_counts_prompts_and_takes_another_group():
    records = [comparison(text, "a", f"{n}", user="u", source="o") for text in "pq" for n in range(2)]
    assert cap_per_user(records, limit=1).records == records[:2]
    prompts = [Prompt(text=f"{n}", user=f"u{n}", source="o") for n in range(3)]
    assert cap_per_user(prompts, limit=1).removed == 0
    assert cap_per_user(prompts, limit=1, group=source_of).records == prompts[:1]
    with pytest.raises(ValueError, match="limit: found 0"):
        cap_per_user(prompts, limit=0)


@given(PROMPTS, st.integers(0, 3))
def test_split_by_user_and_of_unknown_users_by_prompt(prompts, seed):
    splits = split_by_user(prompts, fractions=FRACTIONS, seed=seed)
    assert list(splits) == list(FRACTIONS)
    assert sorted(map(repr, chain.from_iterable(splits.values()))) == sorted(map(repr, prompts))
    split_of = {}
    for name, records in splits.items():
        assert [prompt for prompt in prompts if prompt in records] == records
        for record in records:
            key = ("user", record.user) if record.user else ("prompt", record.text)
            assert split_of.setdefault(key, name) == name


def test_split_is_the_same_whoever_else_is_there_and_whatever_the_record():
    prompts = [Prompt(text=f"p{number}", user=f"u{number % 50}") for number in range(200)]
    whole = split_by_user(prompts, fractions=FRACTIONS, seed=3)
    for name, records in whole.items():
        half = split_by_user(prompts[::2], fractions=FRACTIONS, seed=3)[name]
        assert half == [record for record in records if record in prompts[::2]]
        demonstrations = [Demonstration(prompt="other", completion="", user=record.user) for record in records]
        assert split_by_user(demonstrations, fractions=FRACTIONS, seed=3)[name] == demonstrations
    assert split_by_user(prompts, fractions=FRACTIONS, seed=4) != whole


def test_split_meets_the_shares_on_average():
    users = 4000
    splits = split_by_user([Prompt(text="p", user=f"{n}") for n in range(users)], fractions=FRACTIONS, seed=0)
    for name, share in FRACTIONS.items():
        deviation = (users * share * (1 - share)) ** 0.5
        assert abs(len(splits[name]) - users * share) < 4 * deviation


@pytest.mark.parametrize("fractions", [{"a": 0.5}, {"a": 1.5, "b": -0.5}, {}])
def test_split_takes_shares_of_one(fractions):
    with pytest.raises(ValueError, match="fractions: found"):
        split_by_user([], fractions=fractions, seed=0)


def test_a_split_with_no_share_stays_empty():
    prompts = [Prompt(text=f"{number}") for number in range(50)]
    assert split_by_user(prompts, fractions={"train": 1.0, "test": 0.0}, seed=0) == {"train": prompts, "test": []}


@given(PROMPTS, PROMPTS)
def test_no_prompt_is_left_that_is_held_out(prompts, held_out):
    kept = drop_overlap(prompts, held_out, min_prefix_chars=4)
    assert_part(kept, prompts)
    taken = {prompt.text[:4] for prompt in held_out}
    assert {prompt.text[:4] for prompt in kept.records} == {prompt.text[:4] for prompt in prompts} - taken


def test_personal_data_anywhere_in_a_record_removes_it():
    mail = "write to jane.doe@example.org"
    records = [
        Prompt(text="no"),
        Prompt(text=mail),
        Demonstration(prompt="no", completion=mail),
        comparison("no", "no", f"{mail} or call +1 212 736 5000"),
        comparison("no", "no", "nothing"),
    ]
    kept = remove_personal_data(records)
    assert kept.records == [records[0], records[4]]
    assert kept.removed == 3
    assert kept.reasons == {"email": 3, "phone": 1}


def words(count):
    return " ".join(["w1"] * count)


def test_lengths_at_the_limit(tokenizer):
    records = [
        *(Prompt(text=words(count)) for count in (3, 4)),
        *(Demonstration(prompt="w1", completion=words(count)) for count in (0, 4, 5)),
        Prompt(text=" "),
    ]
    kept = limit_lengths(records, tokenizer, max_prompt_tokens=3, max_response_tokens=5)
    # A completion of 5 tokens is 6 with its end of text.
    assert kept.records == [records[0], records[2], records[3]]
    assert kept.removed == 3
    assert kept.reasons == {"prompt too long": 1, "completion too long": 1, "prompt empty": 1}


def test_lengths_shorten_a_comparison(tokenizer):
    pairs = ((0, 3), (1, 2), (3, 2), (0, 2), (2, 0))
    record = comparison("w1", "w1", words(9), "w2", "w3", pairs=pairs)
    kept = limit_lengths([record, comparison("w1", "w1", words(9))], tokenizer, max_response_tokens=4)
    assert kept.records == [comparison("w1", "w1", "w2", "w3", pairs=((0, 2), (2, 1), (0, 1), (1, 0)))]
    assert (kept.removed, dict(kept.reasons)) == (1, {"comparison shortened": 1, "completion too long": 1})


@given(st.frozensets(st.tuples(st.integers(0, 4), st.integers(0, 4)).filter(lambda pair: pair[0] != pair[1])))
def test_select_completions_keeps_who_beat_whom(pairs):
    record = comparison("p", *"abcde", pairs=pairs, user="u", labeler="l")
    left = select_completions(record, [1, 2, 4])
    by_name = {(record.completions[i], record.completions[j]) for i, j in pairs}
    assert {(left.completions[i], left.completions[j]) for i, j in left.preferred} == {
        (winner, loser) for winner, loser in by_name if winner in "bce" and loser in "bce"
    }
    assert (left.user, left.labeler, prompt_text(left)) == ("u", "l", "p")
