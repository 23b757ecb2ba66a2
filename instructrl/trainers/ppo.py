"""Step 3: PPO and PPO-ptx against the reward model (paper, 3.5 and C.4)."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from instructrl import distributed, profiling
from instructrl.data.encoding import Encoder, blocks_as_sequences
from instructrl.models.adapters import without_idle_adapter
from instructrl.models.base import another, home_of
from instructrl.models.heap import give_back
from instructrl.models.masters import in_float32
from instructrl.models.passes import settled
from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel, ValueFunction
from instructrl.models.spread import spread, synchronised, unsharded
from instructrl.objectives.kl_control import adaptive_kl_coef
from instructrl.ops.ppo import clipped_value_loss, linear_ppo_loss
from instructrl.ops.ppo_settings import PolicySettings, PPOSettings, ValueSettings
from instructrl.rollout.engines import RolloutEngine
from instructrl.rollout.experience import Estimation, RolloutStatistics, make_experience
from instructrl.rollout.generate import Sampling, response_texts, sample_rollout
from instructrl.rollout.randomness import keyed_generator, keyed_seed
from instructrl.rollout.scoring import Reward, rewards, rollout_scores
from instructrl.tracking.callbacks import Sample
from instructrl.trainers.likelihood import accumulate_likelihood_gradient, select_microbatch
from instructrl.trainers.loop import DataOrder, Trainer
from instructrl.trainers.optimization import Update
from instructrl.trainers.settings import PPOConfig
from instructrl.types import Experience, Rollout, Sequences

# Behind the seed in a key: what the numbers are drawn for. Who changes one changes the samples of every run.
_PROMPT_ORDER, _MINIBATCH_ORDER, _RESPONSES, _BLOCK_ORDER, _VALUE_HEAD = range(5)

# Looks at a rollout batch, given the prompts' texts; what it returns is logged with the iteration and used nowhere.
RolloutObserver = Callable[[Sequence[str], Rollout], Mapping[str, float]]


class PPOTrainer(Trainer):
    """Each iteration samples a batch of responses, scores it, and takes its minibatches.

    policy: trained in place; its start is kept as the reference of the KL.
    reward_model: not trained, but in place it may be split among the processes of a job and rounded to bfloat16
        (`models.spread`). The value function starts as its copy; without a reward model, as a copy of the policy with a
        new head.
    prompts: texts. reward: a function from prompts and responses to a number for each, which is added to the score of
        the reward model, or used in its place. blocks: [N, L] int64 of plain text, needed if `ptx_coef` is positive.
    engine: samples the responses. reference, value_function: used in place of those that are made; the first is treated
        like the reward model, the second is trained in place.

    The averaged weights, in `average`, are what is evaluated and saved; the raw weights are trained and sample.
    """

    unit = "episodes"

    def __init__(
        self,
        policy: Policy,
        reward_model: RewardModel | None,
        prompts: Sequence[str],
        encoder: Encoder,
        config: PPOConfig,
        *,
        seed: int = 0,
        reward: Reward | None = None,
        blocks: Tensor | None = None,
        phase: str = "ppo",
        observer: RolloutObserver | None = None,
        engine: RolloutEngine = sample_rollout,
        reference: Policy | None = None,
        value_function: ValueFunction | None = None,
    ) -> None:
        if config.ptx_coef > 0 and blocks is None:
            raise ValueError(f"blocks: found None, ptx_coef {config.ptx_coef} needs plain text")
        if reward_model is None and reward is None:
            raise ValueError("reward: found None and no reward model, accepted is one of them, or both")
        self.policy, self.reward_model, self.encoder, self.reward = policy.eval(), reward_model, encoder, reward
        self.prompts, self.blocks, self.config, self.seed = prompts, blocks, config, seed
        self.observer, self.engine = observer, engine
        self._rollout: Rollout | None = None
        self._scored: tuple[Sequence[str], Rollout, Tensor] | None = None  # the last rollout as the reward saw it
        # One after the other: of what is cut, as few networks as possible are whole at the same time.
        passes, example = settled(config.passes, home_of(policy)), Sequences.smallest()
        if value_function is None:
            start = reward_model or RewardModel.from_policy(policy, keyed_generator(seed, _VALUE_HEAD))
            value_function = ValueFunction.from_reward_model(start)
        self.value_function = value_function.eval()
        spread(self.value_function, passes, forward=example)
        if reward_model is not None:
            spread(reward_model.eval(), passes)
        given = in_float32(policy)
        reference = without_idle_adapter(another(given)) if reference is None else reference.eval()
        self.reference = reference.requires_grad_(False)
        spread(self.reference, passes)
        # In bfloat16 an average stands still: what a step adds to it is less than half the distance of two neighbours.
        self.average = AveragedModel(given, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
        spread(self.average.module, replace(passes, weights="float32"))
        spread(policy, passes, head_inputs=example)
        self._averaged = in_float32(policy)
        self.kl_coef = config.kl_coef
        self.prompt_order = DataOrder(len(prompts), config.rollout_batch, keyed_seed(seed, _PROMPT_ORDER))
        self.policy_update = Update(policy, config.policy_adam).warmup(config.warmup_iterations)
        self.value_update = Update(self.value_function, config.value_adam).warmup(config.warmup_iterations)
        modules = {"policy": policy, "value_function": self.value_function, "average": self.average}
        updates = {"policy": self.policy_update, "value_function": self.value_update}
        super().__init__(phase, config.num_iterations, modules, updates, passes, (prompts, blocks, seed))

    def _train_step(self) -> tuple[dict[str, float], float]:
        """One iteration: a rollout batch and its minibatches."""
        experience, rollout, observed = self._collect()
        kl_coef, lr = self.kl_coef, self.policy_update.lr
        totals: dict[str, float] = {}
        for epoch in range(self.config.num_epochs):
            generator = keyed_generator(self.seed, _MINIBATCH_ORDER, self.step, epoch)
            order = torch.randperm(self.config.rollout_batch, generator=generator)
            for index, rows in enumerate(order.split(self.config.minibatch)):
                part = experience.select(rows.to(experience.scores.device))
                _merge(totals, self._optimize(part, self._ptx_offset(epoch, index)))
        if self.config.kl_target is not None:
            self.kl_coef = adaptive_kl_coef(
                self.kl_coef,
                rollout.kl,
                target=self.config.kl_target,
                horizon=self.config.kl_horizon,
                num_episodes=self.config.rollout_batch,
            )
        self.policy_update.advance_schedule()
        self.value_update.advance_schedule()
        metrics = {**rollout._asdict(), **observed, "kl_coef": kl_coef, "lr": lr, **_summary(totals)}
        return metrics, self.config.rollout_batch

    def _collect(self) -> tuple[Experience, RolloutStatistics, Mapping[str, float]]:
        first = self.step * self.config.rollout_batch
        prompts = [self.prompts[i] for i in self.prompt_order.rows(first, self.config.rollout_batch)]
        sampling = Sampling(
            seed=keyed_seed(self.seed, _RESPONSES),
            temperature=self.config.temperature,
            max_response_tokens=self.config.max_response_tokens or self.encoder.limits.max_response_tokens,
        )
        with profiling.phase("generate"):
            rollout = self.engine(self.policy, self.encoder, prompts, sampling, first_episode=first)
        self._rollout = rollout
        observed = self.observer(prompts, rollout) if self.observer is not None else {}
        scores = self._scores(prompts, rollout)
        self._scored = prompts, rollout, scores
        return *self._experience(rollout, scores), observed

    def _experience(self, rollout: Rollout, scores: Tensor) -> tuple[Experience, RolloutStatistics]:
        return make_experience(
            rollout,
            policy=self.policy,
            reference=self.reference,
            value_function=self.value_function,
            scores=scores,
            kl_coef=self.kl_coef,
            estimation=self._estimation(),
        )

    def _estimation(self) -> Estimation:
        return Estimation(
            discount=self.config.discount,
            lam=self.config.lam,
            temperature=self.config.temperature,
            missing_eos_score=self.config.missing_eos_score,
        )

    def _scores(self, prompts: Sequence[str], rollout: Rollout) -> Tensor:
        scores = torch.zeros(len(prompts), device=rollout.finished.device)
        with profiling.phase("score"):
            if self.reward_model is not None:
                scores += rollout_scores(self.reward_model, rollout, self.encoder.end_of_text)
            if self.reward is not None:
                scores += rewards(self.reward, prompts, response_texts(rollout, self.encoder)).to(scores)
        return scores

    def _optimize(self, minibatch: Experience, ptx_offset: int) -> dict[str, float]:
        """One optimiser step: the gradient of equation 2, PPO's first, then the pretraining term's into the same
        buffers. Returns what `_summary` takes."""
        num_tokens = int(minibatch.sequences.response_mask.sum())
        sums: dict[str, float] = {}
        with profiling.phase("update"):
            microbatches = distributed.microbatches(minibatch.sequences.rows_by_length(), self.config.microbatch)
            unfinished = [self.policy] if self.config.num_ptx_examples else []
            for rows in synchronised(microbatches, [self.policy, self.value_function], unfinished=unfinished):
                _merge(sums, self._accumulate(select_microbatch(minibatch, rows), num_tokens))
            sums = _of_all_processes(sums)
        if self.config.num_ptx_examples and self.blocks is not None:
            order = DataOrder(len(self.blocks), self.config.num_ptx_examples, keyed_seed(self.seed, _BLOCK_ORDER))
            blocks = self.blocks[order.rows(ptx_offset, self.config.num_ptx_examples)]
            with profiling.phase("pretraining"):
                term = self.config.ptx_coef, blocks_as_sequences(blocks)
                (sums["ptx_loss"],), _ = accumulate_likelihood_gradient(self.policy, [term], self.config.microbatch)
        with profiling.phase("update"):
            self.value_update.finite_norm(sums["value_loss"])  # before either network changes
            # ptx_coef is in the gradient already; the losses as they are logged are only looked at.
            sums["gradient_norm"] = self.policy_update.step(sums["policy_loss"], sums.get("ptx_loss", 0.0))
            sums["value_gradient_norm"] = self.value_update.step(sums["value_loss"])
        with profiling.phase("average"):
            self.average.update_parameters(self._averaged)
        return {**sums, "num_updates": 1.0}

    def _accumulate(self, part: Experience, num_tokens: int) -> dict[str, float]:
        """The policy's gradient, then the value function's: what their passes keep is never there at the same time."""
        sequences, settings = part.sequences, loss_settings(self.config)
        hidden, weight, bias = self.policy.head_inputs(sequences)
        policy = linear_ppo_loss(
            hidden,
            weight,
            sequences.response,
            part.logprobs,
            part.advantages,
            None,
            None,
            None,
            sequences.response_mask,
            bias=bias,
            temperature=self.config.temperature,
            num_tokens=num_tokens,
            settings=settings,
            logit_settings=self.policy.logit_settings,
        )
        policy.loss.backward()
        give_back()
        values = self.value_function(sequences)
        value = clipped_value_loss(
            values, part.values, part.returns, sequences.response_mask, num_tokens=num_tokens, settings=settings.value
        )
        (settings.vf_coef * value.loss).backward()
        give_back()
        return {
            "policy_loss": float(policy.policy_loss.detach()),
            "value_loss": float(value.loss.detach()),
            **{name: float(x) for name, x in {**policy.metrics, **value.metrics}.items()},
        }

    def _ptx_offset(self, epoch: int, index: int) -> int:
        """How many blocks of plain text were used before this minibatch."""
        per_epoch = self.config.rollout_batch // self.config.minibatch
        done = (self.step * self.config.num_epochs + epoch) * per_epoch + index
        return done * self.config.num_ptx_examples

    @property
    def averaged(self) -> Policy:
        """The policy with the averaged weights, as it lies over the processes of a job."""
        assert isinstance(self.average.module, Policy)
        return self.average.module

    def averaged_policy(self) -> Policy:
        """A copy of the policy with the averaged weights, whole in each process."""
        with unsharded(self.averaged) as policy:
            return copy.deepcopy(policy)

    def headline(self, metrics: Mapping[str, float]) -> str:
        return f"score {metrics['score']:+.2f}  kl {metrics['kl']:.2f}"

    def batch(self) -> dict[str, Any]:
        rows = self.prompt_order.rows(self.step * self.config.rollout_batch, self.config.rollout_batch)
        found: dict[str, Any] = {"rows": rows, "prompts": [self.prompts[i] for i in rows]}
        if self._rollout is not None:
            found["responses"] = response_texts(self._rollout, self.encoder)
            found["finished"] = self._rollout.finished.tolist()
        return found

    def samples(self, count: int) -> list[Sample]:
        if self._scored is None:
            return []
        prompts, rollout, scores = self._scored
        first = torch.arange(min(count, len(prompts)), device=scores.device)
        texts = response_texts(rollout.select(first), self.encoder)
        rows = zip(prompts, texts, scores[:count].tolist(), strict=False)
        return [Sample(prompt=str(prompt), response=text, score=score) for prompt, text, score in rows]

    def concerns(self) -> list[str]:
        return self.config.concerns()

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        return [text for applies, text in _WARNINGS if applies(metrics)]

    def extra_state(self) -> dict[str, Any]:
        return {"kl_coef": self.kl_coef}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.kl_coef = state["kl_coef"]


def loss_settings(config: PPOConfig) -> PPOSettings:
    """The conventions of the loss that a configuration asks for."""
    # A ratio is not negative: a clip range above 1 bounds it from above only.
    policy = PolicySettings(clip_low=min(config.cliprange, 1.0), clip_high=config.cliprange)
    return PPOSettings(policy=policy, value=ValueSettings(cliprange=config.cliprange_value), vf_coef=config.vf_coef)


# What an iteration's metrics can say, and what helps.
_WARNINGS: tuple[tuple[Callable[[Mapping[str, float]], bool], str], ...] = (
    (
        lambda found: found["kl"] > found["response_tokens"],
        "the policy is more than a nat a token away from where it started; raise kl_coef, set kl_target, or lower the "
        "learning rate",
    ),
    (
        lambda found: found["finished"] == 0.0,
        "no response ended by itself; raise max_response_tokens, or start from a policy that has learned to end",
    ),
    (
        lambda found: found["score_std"] == 0.0,
        "all responses have the same score: there is nothing to learn from; look at the reward model and the prompts",
    ),
    (
        lambda found: found["advantage_std"] < 1e-6,
        "the advantages do not vary; look at the reward model, at kl_coef and at missing_eos_score",
    ),
)

# Metric -> the sum over tokens that it is the mean of.
_TOKEN_MEANS = {
    "clip_fraction": "num_policy_clipped",
    "value_clip_fraction": "num_value_clipped",
    "approx_kl": "approx_kl_sum",
    "ratio": "ratio_sum",
    "value_error": "squared_value_error_sum",
}
_UPDATE_MEANS = ("policy_loss", "value_loss", "ptx_loss", "gradient_norm", "value_gradient_norm")


def _merge(totals: dict[str, float], part: Mapping[str, float]) -> None:
    for name, value in part.items():
        previous = totals.get(name, 0.0)
        totals[name] = max(previous, value) if name.endswith("_max") else previous + value


def _of_all_processes(sums: Mapping[str, float]) -> dict[str, float]:
    """What every process adds up to, or the largest where the name says so."""
    added = dict(zip(sums, distributed.total(list(sums.values())), strict=True))
    return {name: distributed.largest(sums[name]) if name.endswith("_max") else added[name] for name in sums}


def _summary(totals: Mapping[str, float]) -> dict[str, float]:
    """Means over the iteration's tokens and optimiser steps, for `metrics.jsonl`."""
    means = {name: totals[source] / max(totals["num_tokens"], 1.0) for name, source in _TOKEN_MEANS.items()}
    means |= {name: totals[name] / totals["num_updates"] for name in _UPDATE_MEANS if name in totals}
    return {**means, "ratio_max": totals["ratio_max"]}
