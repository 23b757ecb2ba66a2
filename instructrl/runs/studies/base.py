"""The run that a study varies: what the world provided, and the models of its finished steps, read and never written.

Its steps are gone through as the run itself goes through them, with a journal that only recalls. So each is recalled
with a check that its data and networks are what they were, and none is carried out.
"""

from dataclasses import replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from instructrl.data.encoding import Encoder, pack_documents
from instructrl.data.tokenizers import word_tokenizer
from instructrl.evaluation.contenders import Exam
from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel
from instructrl.runs import miniature, steps
from instructrl.runs.journal import FinishedSteps
from instructrl.runs.labeling import Labeling
from instructrl.runs.miniature_data import collect_prompts
from instructrl.runs.selection import select_checkpoint
from instructrl.runs.settings import MiniatureConfig
from instructrl.trainers.log import RunLog
from instructrl.types import Comparison, Document
from instructrl.worlds.miniature import MiniatureWorld


class BaseRun:
    """A miniature run, finished or on its way. Whatever is asked for is read once, when it is asked for.

    Raises ValueError where the run has not done a step whose result is asked for, or did it with other input.
    """

    def __init__(self, config: MiniatureConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.world = MiniatureWorld(config.seed, config.world)
        self.exams = self.world.exams
        encoder = Encoder(word_tokenizer(self.world.vocabulary()), config.recipe.limits)
        self.steps_done = FinishedSteps(folder)
        self.work = replace(
            steps.Workspace.of_run(config, encoder, folder, RunLog(None)), journal=self.steps_done, log=RunLog(None)
        )
        self.sets, _ = collect_prompts(self.world, self.work, config.amounts)
        self.demonstrations = self.world.demonstrations(self.sets.sft)
        self.validation = self.world.demonstrations(self.sets.validation, seed=1)

    def _documents(self, number: int, seed: int) -> list[Document]:
        return self.world.documents(number, seed=seed, without=self.sets.of_held_out_users())

    @cached_property
    def blocks(self) -> Tensor:
        """The corpus, [N, L]."""
        documents = self._documents(self.config.amounts.documents, 0)
        return pack_documents(documents, self.work.encoder.tokenizer, self.config.recipe.block_tokens)

    @cached_property
    def _held_out_documents(self) -> list[Document]:
        """Plain text that no model has read."""
        return self._documents(self.config.amounts.held_out_documents, 1)

    @cached_property
    def gpt(self) -> Policy:
        return steps.pretrain(self.work, steps.new_policy(self.work, self.config.model), self.blocks)

    @cached_property
    def _sft(self) -> tuple[Policy, list[steps.KeptModel]]:
        return steps.finetune(self.work, self.gpt, self.demonstrations, self.validation, phase="sft")

    @property
    def last_sft(self) -> Policy:
        """What the reward model starts from."""
        return self._sft[0]

    @cached_property
    def start(self) -> Policy:
        """What PPO starts from."""
        given = self.demonstrations, self.validation
        return steps.finetune(self.work, self.gpt, *given, phase="ppo_start", blocks=self.blocks)[0]

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Of the training labelers."""
        completions = self.config.amounts.completions
        labeling = Labeling(world=self.world, work=self.work, completions=completions, gpt=self.gpt, sft=self.last_sft)
        return labeling.compare(self.sets.comparisons, self.world.labelers("training"), "training")

    @cached_property
    def reward_model(self) -> RewardModel:
        return steps.fit_reward_model(self.work, self.last_sft, self.comparisons, self.demonstrations)

    @cached_property
    def sft(self) -> Policy:
        """The baseline of the win rates."""
        prompts = [prompt.text for prompt in self.sets.validation]
        return select_checkpoint(self.work, self._sft[1], self.reward_model, prompts, "sft")[0]

    @property
    def prompts(self) -> list[str]:
        """Those of PPO."""
        return [prompt.text for prompt in self.sets.ppo]

    def exam(self, start: Policy) -> Exam:
        """The run's examination on prompts of validation users. start: what the KL is measured from."""
        given = self._held_out_documents, self.sets.validation, self.reward_model, start
        return miniature.exam_of(self.world, self.work, *given)
