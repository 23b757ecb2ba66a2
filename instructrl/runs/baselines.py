"""The paper's baselines beside SFT: GPT behind the best of a few prefixes, and GPT tuned as FLAN and T0 are."""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from instructrl.evaluation.contenders import Contender
from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel
from instructrl.runs.baseline_settings import BaselineConfig
from instructrl.runs.selection import PLACE, Prefix, fitting, read_prefixes, select_checkpoint, select_prefix
from instructrl.runs.steps import Workspace, finetune
from instructrl.types import Demonstration, Prompt
from instructrl.worlds.miniature import MiniatureWorld
from instructrl.worlds.mixtures import STYLES, MixtureConfig, instruction_mixture
from instructrl.worlds.tasks import ASK, REPLY

_INSTRUCTION = "please give a good answer ."
_NUM_EXAMPLES = 3
# With those of so many tokens, `ask :` and `reply :` included, three leave room for the longest prompt.
_EXAMPLE_TOKENS = 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Baselines:
    """What they are made of, drawn before anything is trained. mixtures: by the name of the model that learns them."""

    config: BaselineConfig
    prefixes: Sequence[Prefix]
    mixtures: Mapping[str, Sequence[Demonstration]]

    @classmethod
    def draw(
        cls, config: BaselineConfig, world: MiniatureWorld, demonstrations: Sequence[Demonstration], seed: int
    ) -> "Baselines":
        """Without mixtures where the settings ask for no examples. Raises ValueError where the tasks do not give so
        many, and for a file of prefixes that cannot be used."""
        mixtures = {}
        if config.examples:
            mixture = MixtureConfig(examples=config.examples, cap_per_task=config.cap_per_task, seed=seed)
            mixtures = {style: instruction_mixture(style, mixture, world.facts) for style in STYLES}
        if config.prefixes is None:
            return cls(config=config, prefixes=candidate_prefixes(world, demonstrations, seed), mixtures=mixtures)
        return cls(config=config, prefixes=read_prefixes(config.prefixes), mixtures=mixtures)

    @property
    def taught(self) -> list[Demonstration]:
        """All that the tuned models learn from."""
        return [row for mixture in self.mixtures.values() for row in mixture]

    def make(
        self, work: Workspace, gpt: Policy, reward_model: RewardModel, validation: Sequence[str], test: Sequence[Prompt]
    ) -> tuple[Contender, list[Contender], dict[str, list[dict[str, Any]]]]:
        """Prompted GPT, the tuned models, and the `baselines` of the results.

        validation: prompts by whose responses the reward model chooses. test: what the prefix has to leave room for,
        but for prompts that were written for a model of plain text: these are asked as they are (paper, figure 3).
        """
        plain = frozenset(prompt.text for prompt in test if prompt.source == "gpt")
        asked = [*validation, *(prompt.text for prompt in test if prompt.text not in plain)]
        prefix, rows = select_prefix(work, gpt, fitting(work, self.prefixes, asked), reward_model, validation)
        prompted = Contender(name="GPT (prompted)", policy=gpt, form=except_for(plain, prefix.form))
        tuned = {name: self.tune(work, gpt, reward_model, validation, name) for name in self.mixtures}
        contenders = [Contender(name=name, policy=policy) for name, (policy, _) in tuned.items()]
        return prompted, contenders, {"prefixes": rows, **{name: rows for name, (_, rows) in tuned.items()}}

    def tune(
        self, work: Workspace, gpt: Policy, reward_model: RewardModel, validation: Sequence[str], name: str
    ) -> tuple[Policy, list[dict[str, Any]]]:
        """GPT after a mixture, of which it learns each example once: of the models kept at two learning rates the one
        that scores highest (paper, C.5). Returns it and a row for each of them."""
        phase, kept = name.lower().replace("-", "_"), []
        for number, lr in enumerate((self.config.lower_lr, self.config.higher_lr), start=1):
            settings = replace(
                work.recipe.sft,
                adam=replace(work.recipe.sft.adam, lr=lr),
                batch_size=self.config.batch_size,
                epochs=1,
                keep_every_examples=self.config.keep_every_examples,
            )
            mixture = self.mixtures[name]
            kept += finetune(work, gpt, mixture, None, phase=f"{phase}_{number}", config=settings)[1]
        return select_checkpoint(work, kept, reward_model, validation, phase)


def except_for(prompts: Collection[str], form: Callable[[str], str]) -> Callable[[str], str]:
    """A form that leaves these prompts as they are."""
    return lambda prompt: prompt if prompt in prompts else form(prompt)


def candidate_prefixes(world: MiniatureWorld, demonstrations: Sequence[Demonstration], seed: int) -> list[Prefix]:
    """The one that completions are sampled with, the 3 and 6 shortest demonstrations, 3 of different use cases at
    random, and an instruction alone; all in the form of the corpus' transcripts."""
    shortest = sorted(demonstrations, key=_num_tokens)
    by_use_case: dict[str, list[Demonstration]] = {}
    for row in demonstrations:
        if _num_tokens(row) <= _EXAMPLE_TOKENS:
            by_use_case.setdefault(row.category, []).append(row)
    rng = random.Random(f"prefixes {seed}")
    use_cases = rng.sample(sorted(by_use_case), min(_NUM_EXAMPLES, len(by_use_case)))
    drawn = [rng.choice(by_use_case[name]) for name in use_cases]
    examples: Mapping[str, Sequence[Demonstration]] = {
        "3 shortest demonstrations": shortest[:_NUM_EXAMPLES],
        "6 shortest demonstrations": shortest[: 2 * _NUM_EXAMPLES],
        "3 random demonstrations": drawn,
    }
    return [
        Prefix(name="as completions were sampled", text=world.few_shot_prompt(PLACE)),
        *(Prefix(name=name, text=_transcript(rows)) for name, rows in examples.items()),
        Prefix(name="an instruction", text=f"{_INSTRUCTION} {_transcript([])}"),
    ]


def _transcript(rows: Sequence[Demonstration]) -> str:
    return " ".join([*map(_exchange, rows), f"{ASK} {PLACE} {REPLY}"])


def _exchange(row: Demonstration) -> str:
    return f"{ASK} {row.prompt} {REPLY} {row.completion}"


def _num_tokens(row: Demonstration) -> int:
    return len(_exchange(row).split())
