"""What policies of every size are trained by, and policies of other sizes than the miniature's own.

The reward model, and the value functions that start from it, are of the one size for all (paper, C.2). What policies of
another size leave behind lies in a folder of its own, with a journal and metrics of its own, so that those of the
miniature's size stay what they are:

    FOLDER/sizes/NAME/models, metrics.jsonl, profile.jsonl, state
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from instructrl.evaluation.contenders import Contender
from instructrl.models.backbone import check_context
from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel
from instructrl.runs import steps
from instructrl.runs.journal import Journal
from instructrl.runs.recipe import ModelShape
from instructrl.runs.selection import select_checkpoint
from instructrl.runs.settings import MiniatureConfig
from instructrl.runs.steps import KeptModel, Workspace
from instructrl.trainers.log import RunLog
from instructrl.trainers.ppo import RolloutObserver
from instructrl.types import Demonstration

# The folder of those of other sizes, in the run's.
SIZES = "sizes"
# Each model as it is saved.
_MODELS = {"GPT": "gpt", "SFT": "sft", "PPO": "ppo", "PPO-ptx": "ppo_ptx"}
PromptForm = Callable[[str], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lessons:
    """What policies of every size learn from, in the same order.

    blocks: the corpus, [N, L]. demonstrations, validation: to learn from and for the validation loss. asked: prompts
    by whose responses the reward model chooses SFT. prompts: those of PPO.
    """

    blocks: Tensor
    demonstrations: Sequence[Demonstration]
    validation: Sequence[Demonstration]
    asked: Sequence[str]
    prompts: Sequence[str]
    observer: RolloutObserver

    def imitated(self, work: Workspace, shape: ModelShape) -> "Imitators":
        """Steps 0 and 1."""
        gpt = steps.new_policy(work, shape)
        check_context(gpt.lm, max(work.encoder.limits.total, self.blocks.shape[1]))
        gpt = steps.pretrain(work, gpt, self.blocks)
        last_sft, epochs = steps.finetune(work, gpt, self.demonstrations, self.validation, phase="sft")
        start, _ = steps.finetune(
            work, gpt, self.demonstrations, self.validation, phase="ppo_start", blocks=self.blocks
        )
        return Imitators(gpt=gpt, last_sft=last_sft, epochs=epochs, start=start)

    def optimized(self, work: Workspace, start: Policy, reward_model: RewardModel) -> dict[str, Policy]:
        """Step 3, by the models' names."""

        def policy(phase: str, blocks: Tensor | None = None) -> Policy:
            return steps.optimize_policy(
                work, start, reward_model, self.prompts, phase=phase, blocks=blocks, observer=self.observer
            )

        return {"PPO": policy("ppo"), "PPO-ptx": policy("ppo_ptx", self.blocks)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Imitators:
    """Policies before there is a reward model. epochs: of SFT. start: what PPO starts from."""

    gpt: Policy
    last_sft: Policy
    epochs: Sequence[KeptModel]
    start: Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Models of one size. contenders: all of them, under their names in the results. about: the size's entry there."""

    contenders: Sequence[Contender]
    about: dict[str, Any]

    @classmethod
    def of(cls, shape: ModelShape, contenders: Sequence[Contender], **about: Any) -> "Size":
        parameters = sum(weight.numel() for weight in contenders[0].policy.lm.parameters())
        models = [contender.name for contender in contenders]
        return cls(
            contenders=contenders,
            about={**asdict(shape), "num_parameters": parameters, "models": models, **about},
        )


def other_size(
    work: Workspace, config: MiniatureConfig, name: str, lessons: Lessons, reward_model: RewardModel, form: PromptForm
) -> Size:
    """GPT, SFT, PPO and PPO-ptx of another size, trained where they are not there yet, as one step of the run.

    name: of the size, which stands before the models' own. reward_model: that of the miniature's size. form: how the
    prompted GPT is given a prompt.
    """
    own, shape = replace(work, folder=work.folder / SIZES / name), config.other_sizes[name]

    def step(*_: object) -> list[dict[str, Any]]:
        with work.log.phase(f"size {name}", 1, "sizes") as shown:
            log = RunLog(own.folder, continued=True)
            there = replace(own, log=log, journal=Journal(own.folder, log, config.checkpoints))
            found = lessons.imitated(there, shape)
            there.save(found.start, "ppo_start")
            selection = select_checkpoint(there, found.epochs, reward_model, lessons.asked, "sft")[1]
            lessons.optimized(there, found.start, reward_model)
            shown.advance(units=1)
        return selection

    given = {
        "shape": shape,
        "plain text": lessons.blocks,
        "demonstrations": lessons.demonstrations,
        "validation": lessons.validation,
        "reward model": reward_model,
        "validation prompts": lessons.asked,
        "prompts": lessons.prompts,
    }
    selection = work.journal.once(f"size_{name}", step, given)
    start = own.load("ppo_start")
    contenders = [
        Contender(name=f"{name} {model}", policy=own.load(saved), start=start) for model, saved in _MODELS.items()
    ]
    prompted = replace(contenders[0], name=f"{name} GPT (prompted)", form=form)
    return Size.of(shape, [contenders[0], prompted, *contenders[1:]], sft_selection=selection)
