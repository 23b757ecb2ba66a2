"""Who writes prompts: users with habits, some of them held out, and the raw mess that hygiene has to clean."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from instructrl.types import Prompt
from instructrl.worlds.language import ANIMALS
from instructrl.worlds.tasks import change_constraint, draw_category, draw_gpt_prompt, draw_prompt

SPLITS = ("train", "validation", "test")
# Customers and labelers write to models that follow instructions; the third write what a model of plain text goes on
# from, and are met in the evaluation alone.
SOURCES = ("customer", "labeler", "gpt")


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """favourite: the animal they keep asking about; habit: the use case they keep coming back with; weight: how often
    they write, relative to the others."""

    name: str
    favourite: str
    habit: str
    weight: float


def make_users(seed: int, split: str, source: str, num_users: int) -> list[User]:
    """The users of a split. Names hold the split's first letters, so no user is in two splits."""
    users = []
    for index in range(num_users):
        rng = random.Random(f"user {seed} {split} {source} {index}")
        users.append(
            User(
                name=f"{source}-{split}-{index:03d}",
                favourite=rng.choice(ANIMALS),
                habit=draw_category(rng),
                weight=rng.lognormvariate(0.0, 1.0),
            )
        )
    return users


def write_prompt(user: User, source: str, rng: random.Random, unseen: float) -> Prompt:
    """A prompt by this user. A fifth follows a habit; habits are drawn by the paper's shares, so the mix is kept.

    unseen: how probably it is for a reserved task, which no training text holds.
    """
    is_unseen = rng.random() < unseen
    if source == "gpt":
        text, category = draw_gpt_prompt(rng, unseen=is_unseen)
        return Prompt(text=text, user=user.name, source=source, category=category)
    category = user.habit if rng.random() < 0.2 else draw_category(rng)
    favourite = user.favourite if rng.random() < 0.2 else ""
    text = draw_prompt(rng, category, favourite=favourite, unseen=is_unseen)
    return Prompt(text=text, user=user.name, source=source, category=category)


def distinct_prompts(users: Sequence[User], source: str, num: int, rng: random.Random, unseen: float) -> list[Prompt]:
    """`num` prompts with different texts. Raises ValueError where the language has too few for it."""
    found: dict[str, Prompt] = {}
    for attempt in _write(users, source, rng, unseen):
        found.setdefault(attempt[1].text, attempt[1])
        if len(found) == num:
            return list(found.values())
        if attempt[0] >= 4 * num + 1000:
            raise ValueError(f"num: found {num}, this world gave only {len(found)} different prompts of that source")
    raise AssertionError("the stream of prompts has no end")


def raw_prompts(
    users: Sequence[User], source: str, num: int, rng: random.Random, *, unseen: float, personal_data: bool
) -> list[Prompt]:
    """`num` prompts as they come in: some twice, some sharing a long prefix, some (if allowed) with personal data."""
    prompts: list[Prompt] = []
    for _, prompt in _write(users, source, rng, unseen):
        text = prompt.text
        draw = rng.random()
        if draw < 0.05 and prompts:
            prompt = rng.choice(prompts)
            text = prompt.text
        elif draw < 0.08:
            text = change_constraint(text, rng) or text
            prompts.append(prompt)
        elif draw < 0.10 and personal_data:
            text = f"{_personal_data(rng)} {text}"
        prompts.append(Prompt(text=text, user=prompt.user, source=source, category=prompt.category))
        if len(prompts) >= num:
            return prompts[:num]
    raise AssertionError("the stream of prompts has no end")


def _write(users: Sequence[User], source: str, rng: random.Random, unseen: float) -> Iterator[tuple[int, Prompt]]:
    weights = [user.weight for user in users]
    attempt = 0
    while True:
        attempt += 1
        yield attempt, write_prompt(rng.choices(users, weights=weights)[0], source, rng, unseen)


def _personal_data(rng: random.Random) -> str:
    """A made-up address or number, of the reserved kind."""
    if rng.random() < 0.5:
        return f"my mail is {rng.choice(('mia', 'tom', 'ana', 'ben'))}{rng.randint(1, 99)}@example.com ."
    return f"my phone is 555-01{rng.randint(10, 99)}-{rng.randint(1000, 9999)} ."
