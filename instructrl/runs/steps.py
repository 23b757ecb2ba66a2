"""The steps that every run is made of. Each takes what it needs and returns what the next one needs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from instructrl import distributed, durable, progress
from instructrl.data.encoding import Encoder
from instructrl.evaluation.contenders import Contender
from instructrl.evaluation.suites.settings import SuiteConfig
from instructrl.models.folders import room_for
from instructrl.models.heap import give_back_large
from instructrl.models.policy import Policy, neox_policy
from instructrl.models.roles import learner, on_shared_base
from instructrl.models.scoring import RewardModel
from instructrl.models.spread import exact
from instructrl.models.vocabulary import num_ids
from instructrl.rollout.engines import RolloutEngine
from instructrl.rollout.generate import Samples, Sampling, sample_rollout, sample_texts
from instructrl.rollout.randomness import keyed_generator, keyed_seed
from instructrl.runs.chat_settings import ChatRecipe
from instructrl.runs.journal import NO_SOURCES, Journal
from instructrl.runs.recipe import ModelShape, Recipe
from instructrl.trainers.checkpoints import Checkpoint, Checkpoints
from instructrl.trainers.log import RunLog
from instructrl.trainers.loop import Trainer
from instructrl.trainers.ppo import PPOTrainer, RolloutObserver
from instructrl.trainers.pretraining import PretrainingTrainer
from instructrl.trainers.reward_model import RewardModelTrainer, normalize_on_demonstrations
from instructrl.trainers.settings import PPOConfig, SFTConfig
from instructrl.trainers.sft import SFTTrainer, demonstration_loss
from instructrl.types import Comparison, Demonstration

NetworkT = TypeVar("NetworkT", Policy, RewardModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """Where a run writes, and what all of its steps share.

    folder: models go to `folder/models/NAME`, in transformers' format. seed: of everything random. config: the
    resolved configuration of the run, for the results. journal: of the steps that are done. suites, suite: the public
    test sets that the models are put through at the end, as `read_suites` takes them.
    """

    folder: Path
    log: RunLog
    encoder: Encoder
    recipe: Recipe | ChatRecipe
    seed: int
    config: Mapping[str, Any]
    journal: Journal
    suites: Sequence[str] = ()
    suite: SuiteConfig = SuiteConfig()

    @classmethod
    def of_run(
        cls, config: Any, encoder: Encoder, folder: Path, log: RunLog, sources: Mapping[str, str | None] = NO_SOURCES
    ) -> "Workspace":
        """That of a named run. config: its settings. sources: as `Journal` takes them."""
        return cls(
            folder=folder,
            log=log,
            encoder=encoder,
            recipe=config.recipe,
            seed=config.seed,
            config=asdict(config),
            journal=Journal(folder, log, config.checkpoints, sources),
            suites=config.suites,
            suite=config.suite,
        )

    @property
    def rendering(self) -> dict[str, str]:
        """How conversations are read, for the journal: a file of a template may have other content later."""
        chat = self.encoder.chat
        return {} if chat is None else {"chat template": f"{chat.today} {chat.text}"}

    def seed_for(self, step: str) -> int:
        """The seed of one named step."""
        return seed_for(self.seed, step)

    def model(self, name: str) -> Path:
        """Where `save` puts it."""
        return self.folder / "models" / name

    def saved(self, name: str) -> Path:
        """Where it is. Raises ValueError where it is not: by a folder that is missing, a hub would be asked."""
        folder = self.model(name)
        if not folder.is_dir():
            raise ValueError(f"{folder}: found nothing, accepted is the model that was saved there, or --fresh")
        return folder

    def load(self, name: str) -> Policy:
        """A policy that is there, with the run's tokenizer."""
        return self.load_from(self.saved(name))

    def load_from(self, folder: Path) -> Policy:
        return Policy.load(folder, self.encoder.tokenizer, in_parts=self.recipe.in_parts)

    def save(self, model: Policy | RewardModel, name: str) -> Path:
        """Write a model as `models/NAME`: whole, as it learned, and on the disk when this returns."""
        with exact(model, main_alone=True) as found, progress.wait(f"saving {self.model(name)}"):
            distributed.from_main(lambda: self._write(found, name))
        return self.model(name)

    def _write(self, model: Policy | RewardModel, name: str) -> None:
        # One that is there is of a step that is done over.
        with room_for(self.model(name)), durable.whole_folder(self.model(name)) as aside:
            if isinstance(model, Policy):
                model.save(aside, self.encoder.tokenizer, self.encoder.ends)
            else:
                model.save(aside, self.encoder.tokenizer)

    def sampling(self, step: str, temperature: float = 1.0) -> Sampling:
        return Sampling(
            seed=self.seed_for(step),
            temperature=temperature,
            max_response_tokens=self.recipe.ppo.max_response_tokens or self.recipe.limits.max_response_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptModel:
    """A model as fine-tuning left it at some point.

    name: of its saved weights. epoch: the one that it is in or at the end of, from 1. examples: learned so far, in
    every epoch anew. lr: the peak of the run's. validation_loss: None without such data.
    """

    name: str
    epoch: int
    examples: int
    lr: float
    validation_loss: float | None


def seed_for(seed: int, step: str) -> int:
    """The seed of one named step, so that adding a step changes no other."""
    return keyed_seed(seed, *step.encode())


def new_policy(work: Workspace, shape: ModelShape) -> Policy:
    """An untrained policy of this shape for the run's tokenizer."""
    with torch.random.fork_rng([]):
        torch.manual_seed(work.seed_for("initialisation"))
        return neox_policy(
            vocabulary=num_ids(work.encoder.tokenizer),
            context=shape.context,
            layers=shape.layers,
            width=shape.width,
            heads=shape.heads,
            end_of_text=work.encoder.end_of_text,
        )


def pretrain(work: Workspace, policy: Policy, blocks: Tensor) -> Policy:
    """Step 0. blocks: [N, L] int64 of plain text. Raises ValueError where the recipe has no pretraining."""
    config = work.recipe.pretraining if isinstance(work.recipe, Recipe) else None
    if config is None:
        raise ValueError("pretraining: found null in the recipe, accepted are its settings for a model made here")

    def train(checkpoints: Checkpoints, found: Checkpoint | None) -> dict[str, Any]:
        trained = learner(policy)
        trainer = PretrainingTrainer(trained, blocks, config, work.seed_for("pretraining"))
        return _train(work, trainer, checkpoints, found, lambda: work.save(trained, "gpt"))

    work.journal.once("pretraining", train, {"model": policy, "plain text": blocks})
    return work.load("gpt")


def _learner(work: Workspace, role: NetworkT, step: str) -> NetworkT:
    """Another one that learns, with an adapter where the recipe asks for them. step: that the adapter's seed is of."""
    give_back_large(role)
    return learner(role, work.recipe.adapter, work.seed_for(f"{step} adapter"))


def _train(
    work: Workspace,
    trainer: Trainer,
    checkpoints: Checkpoints,
    found: Checkpoint | None,
    finish: Callable[[], object],
) -> dict[str, Any]:
    """A trainer to its end, from where it was left, and what is made of it. Returns what the journal keeps."""
    if found is not None:
        trainer.resume(found)
    trainer.run(work.log, checkpoints=checkpoints)
    # What comes next may fail, on a full disk for one: then it is done again from here.
    trainer.save(checkpoints, work.log)
    finish()
    return {"steps": trainer.step, "state": trainer.digest()}


def finetune(
    work: Workspace,
    base: Policy,
    train: Sequence[Demonstration],
    valid: Sequence[Demonstration] | None,
    *,
    phase: str,
    blocks: Tensor | None = None,
    config: SFTConfig | None = None,
) -> tuple[Policy, list[KeptModel]]:
    """Step 1 on a copy of `base`.

    valid: None measures no validation loss. config: None are the recipe's settings for `phase` ("sft" or "ppo_start").
    Returns the last policy and all that were kept, each saved.
    """
    settings: SFTConfig = getattr(work.recipe, phase) if config is None else config
    on_shared_base(base, work.recipe.adapter)

    def step(checkpoints: Checkpoints, found: Checkpoint | None) -> dict[str, Any]:
        policy, kept = _learner(work, base, phase), []
        trainer = SFTTrainer(
            policy, train, work.encoder, settings, seed=work.seed_for(phase), blocks=blocks, phase=phase
        )
        if found is not None:
            trainer.resume(found)
        for turn, until in enumerate(trainer.keeps):
            epoch, examples = -(-until // trainer.steps_per_epoch), trainer.num_examples(until)
            by_epoch = settings.keep_every_examples is None
            name = f"{phase}_epoch_{epoch:02d}" if by_epoch else f"{phase}_examples_{examples:07d}"
            if turn == len(trainer.validation_losses):
                trainer.run(work.log, until=until, checkpoints=checkpoints)
                loss = None if valid is None else demonstration_loss(policy, valid, work.encoder, settings.turns)
                if loss is not None:
                    work.log.metrics(phase, trainer.step - 1, {"validation_loss": loss, "epoch": epoch})
                work.save(policy, name)
                trainer.validation_losses.append(loss)
                trainer.save(checkpoints, work.log)
            loss = trainer.validation_losses[turn]
            lr = settings.adam.lr
            kept.append(KeptModel(name=name, epoch=epoch, examples=examples, lr=lr, validation_loss=loss))
        return {"steps": trainer.step, "state": trainer.digest(), "kept": [asdict(row) for row in kept]}

    given = {"model": base, "demonstrations": train, "validation": valid, "plain text": blocks, **work.rendering}
    kept = [KeptModel(**row) for row in work.journal.once(phase, step, given)["kept"]]
    for row in kept:
        work.saved(row.name)
    return work.load(kept[-1].name), kept


def fit_reward_model(
    work: Workspace,
    start: Policy,
    comparisons: Sequence[Comparison],
    demonstrations: Sequence[Demonstration] | None,
    phase: str = "reward_model",
) -> RewardModel:
    """Step 2 from a policy with its unembedding removed; then the bias that puts demonstrations at 0 on average.

    demonstrations: None leaves the bias 0. phase: the name under which it is logged and saved.
    """
    on_shared_base(start, work.recipe.adapter)

    def step(checkpoints: Checkpoints, found: Checkpoint | None) -> dict[str, Any]:
        head = keyed_generator(work.seed_for(f"{phase} head"))
        reward_model = _learner(work, RewardModel.from_policy(start, head), phase)
        trainer = RewardModelTrainer(
            reward_model, comparisons, work.encoder, work.recipe.reward_model, seed=work.seed_for(phase), phase=phase
        )

        def finish() -> None:
            if demonstrations is not None:
                normalize_on_demonstrations(reward_model, work.encoder, demonstrations)
            work.save(reward_model, phase)

        return _train(work, trainer, checkpoints, found, finish)

    compared = "comparisons" if phase == "reward_model" else f"comparisons of {phase}"
    work.journal.once(
        phase, step, {"model": start, compared: comparisons, "demonstrations": demonstrations, **work.rendering}
    )
    return RewardModel.load(work.saved(phase), in_parts=work.recipe.in_parts).eval()


def optimize_policy(
    work: Workspace,
    start: Policy,
    reward_model: RewardModel,
    prompts: Sequence[str],
    *,
    phase: str,
    blocks: Tensor | None = None,
    observer: RolloutObserver | None = None,
    engine: RolloutEngine = sample_rollout,
    reference: Policy | None = None,
    keep: Sequence[int] = (),
) -> Policy:
    """Step 3 on a copy of `start`, with the recipe's settings for `phase` ("ppo" or "ppo_ptx").

    reference: what the KL is measured from; None: the start. keep: numbers of iterations in rising order, after each of
    which the averaged policy is saved as `kept_policy` names it.
    Returns the averaged policy, which is also saved.

    PPO and PPO-ptx share the seed: they see the same prompts, and differ by the mix alone.
    """
    config: PPOConfig = getattr(work.recipe, phase)
    for role in (start, reward_model):
        on_shared_base(role, work.recipe.adapter)

    def step(checkpoints: Checkpoints, found: Checkpoint | None) -> dict[str, Any]:
        trainer = PPOTrainer(
            _learner(work, start, phase),
            _learner(work, reward_model, f"{phase} value"),
            prompts,
            work.encoder,
            config,
            seed=work.seed_for("ppo"),
            blocks=blocks,
            phase=phase,
            observer=observer,
            engine=engine,
            reference=None if reference is None else _learner(work, reference, f"{phase} reference"),
        )
        if found is not None:
            trainer.resume(found)
        for iteration in keep:
            if iteration >= trainer.step:
                trainer.run(work.log, until=iteration, checkpoints=checkpoints)
                work.save(trainer.averaged, kept_policy(phase, iteration))
                trainer.save(checkpoints, work.log)
        return _train(work, trainer, checkpoints, None, lambda: work.save(trainer.averaged, phase))

    given = {"model": start, "reward model": reward_model, "prompts": prompts, "plain text": blocks, **work.rendering}
    if reference is not None:
        given["reference"] = reference
    work.journal.once(phase, step, given)
    return work.load(phase)


def kept_policy(phase: str, iteration: int) -> str:
    """The name of the averaged policy that `optimize_policy` kept after so many iterations."""
    return f"{phase}_iteration_{iteration:04d}"


def sample_completions(
    work: Workspace, samplers: Sequence[Contender], prompts: Sequence[str], counts: Sequence[int], name: str
) -> list[Samples]:
    """Several completions of each prompt, for labelers to rank.

    Completion k of prompt i comes from sampler `(i + k) % len(samplers)`, so that each contributes its share whatever
    K is. counts: K of each prompt. name: distinguishes this collection's random numbers from another's.
    """

    def step(*_: object) -> list[dict]:
        return [asdict(row) for row in _completions(work, samplers, prompts, counts, name)]

    given = {"prompts": prompts, "numbers of completions": counts, **work.rendering}
    return [Samples(**row) for row in work.journal.once(f"completions_{name}", step, given)]


def _completions(
    work: Workspace, samplers: Sequence[Contender], prompts: Sequence[str], counts: Sequence[int], name: str
) -> list[Samples]:
    texts = [[""] * count for count in counts]
    finished = [[False] * count for count in counts]
    with work.log.phase(f"completions ({name})", len(samplers), "responses") as shown:
        for turn, sampler in enumerate(samplers):
            places = [(i, k) for i, count in enumerate(counts) for k in range(count)]
            places = [(i, k) for i, k in places if (i + k) % len(samplers) == turn]
            asked = [sampler.form(prompts[i]) for i, _ in places]
            samples = sample_texts(sampler.policy, work.encoder, asked, work.sampling(f"completions {name} {turn}"))
            for (i, k), text, done in zip(places, samples.texts, samples.finished, strict=True):
                texts[i][k], finished[i][k] = text, done
            shown.advance(units=len(places))
            distributed.leave_if_wished()
    return [Samples(texts=t, finished=f) for t, f in zip(texts, finished, strict=True)]
