"""The cleaning of the paper (3.2, A.2, C.4), each step a function from records to the records that are left.

Steps keep the order of the records and change none of them, except that `limit_lengths` takes too long completions
out of comparisons. A record is a Prompt, a Demonstration or a Comparison; its group is its user unless a function is
given (the paper's 3.2 says user, its A.2 organisation).
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from transformers import PreTrainedTokenizerBase

from instructrl import progress
from instructrl.data.chat import ChatTemplate
from instructrl.data.encoding import Encoder
from instructrl.data.personal_data import find_personal_data
from instructrl.data.settings import Limits
from instructrl.data.tokenizers import encode_text
from instructrl.types import Comparison, Conversation, Demonstration, Prompt

Record = Prompt | Demonstration | Comparison
RecordT = TypeVar("RecordT", Prompt, Demonstration, Comparison)
Group = Callable[[Record], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept(Generic[RecordT]):
    """What a step left. removed: how many records it took. reasons: counts by reason, where a step has several."""

    records: list[RecordT]
    removed: int
    reasons: Mapping[str, int]


def prompt_text(record: Record) -> str:
    """The prompt of a record of any kind."""
    return record.text if isinstance(record, Prompt) else record.prompt


def completion_texts(record: Record) -> tuple[str, ...]:
    """The completions of a record of any kind; a prompt has none."""
    if isinstance(record, Comparison):
        return record.completions
    return (record.completion,) if isinstance(record, Demonstration) else ()


def user_of(record: Record) -> str:
    """The group of the paper's section 3.2."""
    return record.user


def source_of(record: Record) -> str:
    """The source as the group: for organisations, put there."""
    return record.source


def drop_common_prefixes(records: Iterable[RecordT], *, min_prefix_chars: int = 200) -> Kept[RecordT]:
    """Leave one of the prompts that share a long common prefix, the first one; and each record once.

    Two prompts share a long prefix if their first `min_prefix_chars` characters are equal; shorter ones only if they
    are equal altogether. This is an equivalence, so one pass with a dictionary finds it, in linear time. The paper
    gives no length: 200 characters are about 50 tokens, longer than the preambles that templates in wide use put
    before an instruction (about 175). Several demonstrations or comparisons of the prompt that is left all stay.
    """
    if min_prefix_chars < 1:
        raise ValueError(f"min_prefix_chars: found {min_prefix_chars}, accepted are positive numbers of characters")
    first: dict[str, str] = {}
    seen: set[Record] = set()
    kept: list[RecordT] = []
    reasons: Counter[str] = Counter()
    for record in progress.through("common prefixes", records):
        text = prompt_text(record)
        if first.setdefault(prefix_key(text, min_prefix_chars), text) != text:
            reasons["common prefix"] += 1
        elif record in seen or (isinstance(record, Prompt) and Prompt(text=text) in seen):
            reasons["repeated"] += 1
        else:
            # A prompt is the same prompt whoever asked it; demonstrations and comparisons may differ by labeler.
            seen.add(Prompt(text=text) if isinstance(record, Prompt) else record)
            kept.append(record)
    return Kept(records=kept, removed=reasons.total(), reasons=dict(reasons))


def prefix_key(text: str, min_prefix_chars: int) -> str:
    """What two prompts have in common if and only if they share a long prefix."""
    return text[:min_prefix_chars]


def cap_per_user(records: Iterable[RecordT], *, limit: int = 200, group: Group = user_of) -> Kept[RecordT]:
    """Leave the first `limit` different prompts of each user, with all their records. Unknown users are not capped."""
    if limit < 1:
        raise ValueError(f"limit: found {limit}, accepted are positive numbers of prompts")
    prompts: defaultdict[str, set[str]] = defaultdict(set)
    kept: list[RecordT] = []
    removed = 0
    for record in records:
        own = prompts[group(record)]
        if not group(record) or prompt_text(record) in own or len(own) < limit:
            own.add(prompt_text(record))
            kept.append(record)
        else:
            removed += 1
    return Kept(records=kept, removed=removed, reasons={})


def split_by_user(
    records: Iterable[RecordT], *, fractions: Mapping[str, float], seed: int, group: Group = user_of
) -> dict[str, list[RecordT]]:
    """Split so that no user is in two splits.

    fractions: name of a split to its share of the users; they sum to 1. The split of a user is a hash of the seed and
    the user alone: the same in every file, and on every machine, and unchanged when other users come or go. Shares
    are therefore met on average; with few users a split may be empty. A record of an unknown user is a group of its
    own, by its prompt. Raises ValueError where the fractions are none.
    """
    if any(not 0 <= share <= 1 for share in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-9:
        raise ValueError(f"fractions: found {dict(fractions)}, accepted are shares from 0 to 1 that sum to 1")
    splits: dict[str, list[RecordT]] = {name: [] for name in fractions}
    for record in records:
        splits[_split_of(_group_or_prompt(record, group), fractions, seed)].append(record)
    return splits


def prompt_hash(record: Record) -> int:
    """A number from 0 to 2**64 - 1 that depends on the prompt alone, the same on every machine."""
    digest = hashlib.blake2b(prompt_text(record).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _group_or_prompt(record: Record, group: Group) -> str:
    # The mark keeps a user called like a prompt apart from that prompt.
    return f"group {group(record)}" if group(record) else f"prompt {prompt_text(record)}"


def _split_of(name: str, fractions: Mapping[str, float], seed: int) -> str:
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    position = int.from_bytes(digest, "big") / 2**64
    passed = 0.0
    for split, share in fractions.items():
        passed += share
        if position < passed:
            return split
    return [split for split, share in fractions.items() if share][-1]  # the shares summed to a little less than 1


def drop_overlap(
    records: Iterable[RecordT], held_out: Iterable[Record], *, min_prefix_chars: int = 200
) -> Kept[RecordT]:
    """Leave the records whose prompt shares no long prefix with a held-out prompt (of any kind of record).

    The split by user keeps users apart, but two users may have asked the same thing. `min_prefix_chars` as in
    `drop_common_prefixes`.
    """
    taken = {prefix_key(prompt_text(record), min_prefix_chars) for record in held_out}
    records = list(records)
    kept = [record for record in records if prefix_key(prompt_text(record), min_prefix_chars) not in taken]
    return Kept(records=kept, removed=len(records) - len(kept), reasons={})


def remove_personal_data(records: Iterable[RecordT], *, phone_regions: Sequence[str] = ("US",)) -> Kept[RecordT]:
    """Leave the records without personal data in prompt or completions (see personal_data.py for what is found).

    The paper filters such prompts out of the training split; nothing is masked, since a model would learn the mask.
    `reasons` counts, by kind, the records that had it.
    """
    kept: list[RecordT] = []
    removed = 0
    reasons: Counter[str] = Counter()
    for record in progress.through("personal data", records):
        texts = (prompt_text(record), *completion_texts(record))
        kinds = {data.kind for text in texts for data in find_personal_data(text, phone_regions=phone_regions)}
        reasons.update(kinds)
        removed += bool(kinds)
        if not kinds:
            kept.append(record)
    return Kept(records=kept, removed=removed, reasons=dict(sorted(reasons.items())))


def limit_lengths(
    records: Iterable[RecordT],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_tokens: int = 1024,
    max_response_tokens: int = 1024,
    chat: ChatTemplate | None = None,
) -> Kept[RecordT]:
    """Leave the records whose prompts and completions fit (paper, C).

    A prompt counts with what its tokenizer starts a text with, a completion with its end-of-text token, a conversation
    as the chat template writes it. A demonstration that is too long goes; of a comparison, only the completions that
    are too long go, and it goes with them where fewer than two are left. Prompts without any text go.
    `reasons` counts the shortened comparisons too, which stay.
    """
    kept: list[RecordT] = []
    reasons: Counter[str] = Counter()
    removed = 0
    limits = Limits(max_prompt_tokens=max_prompt_tokens, max_response_tokens=max_response_tokens)
    encoder = Encoder(tokenizer, limits, chat)
    for record in progress.through("lengths", records):
        prompt = prompt_text(record)
        fitting = [encoder.is_whole(text, prompt=prompt) for text in completion_texts(record)]
        empty = not isinstance(prompt, Conversation) and not encode_text(tokenizer, prompt)
        if empty or not encoder.fits(prompt):
            reason = "prompt empty" if empty else "prompt too long"
        elif all(fitting):
            kept.append(record)
            continue
        elif isinstance(record, Comparison) and sum(fitting) >= 2:
            reasons["comparison shortened"] += 1
            kept.append(select_completions(record, [i for i, fits in enumerate(fitting) if fits]))
            continue
        else:
            reason = "completion too long"
        reasons[reason] += 1
        removed += 1
    return Kept(records=kept, removed=removed, reasons=dict(reasons))


def drop_equal_pairs(comparisons: Iterable[Comparison], encoder: Encoder) -> Kept[Comparison]:
    """Leave out the pairs whose responses are the same tokens, and the comparisons that had no other pairs."""
    kept: list[Comparison] = []
    removed = 0
    for record in comparisons:
        left = encoder.without_equal_pairs(record)
        removed += bool(record.preferred and not left.preferred)
        if left.preferred or not record.preferred:
            kept.append(left)
    return Kept(records=kept, removed=removed, reasons={})


def select_completions(comparison: Comparison, indices: Sequence[int]) -> Comparison:
    """The comparison of some of its completions. indices: at least two, ascending."""
    place = {index: new for new, index in enumerate(indices)}
    pairs = comparison.preferred
    return replace(
        comparison,
        completions=tuple(comparison.completions[index] for index in indices),
        preferred=frozenset((place[i], place[j]) for i, j in pairs if i in place and j in place),
    )
