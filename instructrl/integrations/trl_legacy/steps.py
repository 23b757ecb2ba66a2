"""What `step` of TRL's trainer up to 0.11 does, as a trainer of this package, which can be saved and gone on with."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from instructrl.data.encoding import pad_left, pad_right
from instructrl.integrations.trl.episodes import Episodes
from instructrl.integrations.trl_legacy.arguments import KL_PENALTIES, PPOConfig
from instructrl.integrations.trl_legacy.scores import RunningScores
from instructrl.integrations.trl_legacy.statistics import minibatch_statistics, step_statistics
from instructrl.integrations.trl_legacy.value_head import AutoModelForCausalLMWithValueHead
from instructrl.models.passes import applied
from instructrl.models.policy import Policy
from instructrl.models.settings import PassConfig
from instructrl.objectives.kl_control import adaptive_kl_coef
from instructrl.ops.advantage_settings import WhitenSettings
from instructrl.ops.advantages import generalized_advantages, masked_whiten, ppo_advantages
from instructrl.ops.logprobs import linear_token_logprobs
from instructrl.ops.ppo import kl_token_losses, linear_ppo_loss
from instructrl.ops.ppo_settings import KLSettings
from instructrl.rollout.randomness import keyed_generator
from instructrl.trainers.loop import Trainer
from instructrl.trainers.optimization import Update
from instructrl.types import Sequences

_MINIBATCH_ORDER = 0  # behind the seed in a key, as in `trainers.ppo`


class _Joint(nn.Module):
    """Log-probabilities and values by one pass of one network."""

    def __init__(self, model: AutoModelForCausalLMWithValueHead) -> None:
        super().__init__()
        self.policy, self.v_head = Policy(model.pretrained_model), model.v_head
        self.eval()

    def forward(self, sequences: Sequences) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor | None]]:
        """Values [B, T] float32 and what `linear_*` operations take."""
        head = self.policy.head_inputs(sequences)
        return self.v_head(head[0]).squeeze(-1).float(), head

    @torch.no_grad()
    def outputs(self, sequences: Sequences, size: int) -> tuple[Tensor, Tensor]:
        """Log-probabilities and values: [B, T] float32. size: rows of a pass."""
        found = []
        for rows in torch.arange(sequences.num_rows).split(size):
            part = sequences.select(rows.to(sequences.response.device))
            values, head = self(part)
            found.append((self.logprobs(part, head), values))
        logprobs, values = zip(*found, strict=True)
        return torch.cat(logprobs), torch.cat(values)

    def logprobs(self, sequences: Sequences, head: tuple[Tensor, Tensor, Tensor | None]) -> Tensor:
        """[B, T] float32."""
        hidden, weight, bias = head
        return linear_token_logprobs(
            hidden, weight, sequences.response, bias=bias, mask=sequences.response_mask,
            logit_settings=self.policy.logit_settings,
        )  # fmt: skip


class Learner(Trainer):
    """A step is a batch of responses with their scores, which somebody else has sampled.

    reference: of the KL. filler: the id of what counts for nothing. optimizer, lr_scheduler: in place of Adam by the
    config. Raises ValueError for an optimizer of other weights than the model's.
    """

    unit = "episodes"

    def __init__(
        self,
        config: PPOConfig,
        model: AutoModelForCausalLMWithValueHead,
        reference: Policy,
        filler: int,
        optimizer: torch.optim.Optimizer | None,
        lr_scheduler: Any,
    ) -> None:
        self.config, self.filler = config, filler
        self._joint, self._reference = _Joint(model), reference.eval()
        self.device = next(model.parameters()).device
        self.update = Update(self._joint, config.adam)
        self._take_optimizer(optimizer, lr_scheduler)
        self.kl_coef, self.running = config.init_kl_coef, RunningScores()
        passes = PassConfig(weights="float32", checkpoint_activations=config.gradient_checkpointing)
        modules, updates = {"model": self._joint}, {"model": self.update}
        super().__init__("ppo", config.total_ppo_epochs, modules, updates, passes, (config.seed,))

    def _take_optimizer(self, optimizer: torch.optim.Optimizer | None, lr_scheduler: Any) -> None:
        if optimizer is not None:
            given = [weight for group in optimizer.param_groups for weight in group["params"]]
            if list(map(id, given)) != list(map(id, self.update.parameters)):
                raise ValueError("optimizer: found one of other weights, accepted is one of `model.parameters()`")
            self.update.optimizer = optimizer  # pyright: ignore[reportAttributeAccessIssue]
        self.update.schedule = lr_scheduler

    def learn(
        self, queries: list[Tensor], responses: list[Tensor], scores: list[Any], masks: list[Tensor] | None
    ) -> dict[str, Any]:
        """See `PPOTrainer.step`."""
        _check(self.config.batch_size, queries, responses, scores, masks)
        self._given = (queries, responses, torch.stack([torch.as_tensor(x).float().reshape(()) for x in scores]))
        self._masks = masks
        with applied(self._passes, [self._joint]):
            self.train_step()
        return self._statistics

    def _train_step(self) -> tuple[dict[str, float], float]:
        config, kl_coef = self.config, self.kl_coef
        episodes, rewards, kl = self._episodes()
        updates: list[dict[str, float]] = []
        for epoch in range(config.ppo_epochs):
            order = torch.randperm(
                config.batch_size, generator=keyed_generator(config.seed, _MINIBATCH_ORDER, self.step, epoch)
            )
            for batch in order.split(config.rows_of_a_pass * config.gradient_accumulation_steps):
                parts = batch.to(self.device).split(config.rows_of_a_pass)
                updates += [
                    self._accumulate(episodes.select(rows), config.gradient_accumulation_steps) for rows in parts
                ]
                self.update.step(sum(each["loss/total"] for each in updates[-len(parts) :]))
            if config.early_stopping and updates[-1]["policy/policykl"] > 1.5 * config.target_kl:
                break
        self._statistics = step_statistics(episodes, rewards, kl, kl_coef, updates, self.update.lr)
        if config.adap_kl_ctrl:
            measured = float(kl.sum(dim=1).mean())
            self.kl_coef = adaptive_kl_coef(
                kl_coef, measured, target=config.target, horizon=int(config.horizon), num_episodes=config.batch_size
            )
        self.update.advance_schedule()
        return {"loss": updates[-1]["loss/total"]}, config.batch_size

    @torch.no_grad()
    def _episodes(self) -> tuple[Episodes, Tensor, Tensor]:
        """What is learned from, rewards without the scores, and the KL: [B, T] each."""
        config, (queries, responses, scores) = self.config, self._given
        sequences, counted = self._sequences(queries, responses)
        scores = self._scaled(scores.to(self.device))
        logprobs, values = self._joint.outputs(sequences, config.rows_of_a_pass)
        ref_logprobs = torch.cat(
            [
                self._reference(sequences.select(rows.to(self.device)))
                for rows in torch.arange(sequences.num_rows).split(config.rows_of_a_pass)
            ]
        )
        estimate = ppo_advantages(
            logprobs,
            ref_logprobs,
            values,
            scores,
            counted,
            kl_coef=self.kl_coef,
            gamma=config.gamma,
            lam=config.lam,
            settings=config.rewards,
        )
        advantages, returns = estimate.advantages, estimate.returns
        if config.whiten_rewards:
            rewards = masked_whiten(estimate.rewards, counted, settings=WhitenSettings(center=False))
            advantages, returns = generalized_advantages(
                rewards, values, counted, gamma=config.gamma, lam=config.lam, settings=config.rewards.gae
            )
        kl = kl_token_losses(
            logprobs, ref_logprobs, counted, settings=KLSettings(estimator=KL_PENALTIES[config.kl_penalty])
        )
        episodes = Episodes(
            sequences=sequences,
            scores=scores,
            logprobs=logprobs,
            ref_logprobs=ref_logprobs,
            values=values.masked_fill(~counted, 0.0),
            advantages=masked_whiten(advantages, counted),
            returns=returns,
            counted=counted,
        )
        return episodes, -self.kl_coef * kl, kl

    def _sequences(self, queries: list[Tensor], responses: list[Tensor]) -> tuple[Sequences, Tensor]:
        """Queries with their responses, and which tokens of the responses count."""
        prompt, prompt_mask = pad_left([x.tolist() for x in queries], self.filler)
        response, response_mask = pad_right([x.tolist() for x in responses], self.filler)
        sequences = Sequences(prompt=prompt, prompt_mask=prompt_mask, response=response, response_mask=response_mask)
        counted = response_mask
        if self._masks is not None:
            counted = counted & (pad_right([x.long().tolist() for x in self._masks], 0)[0] != 0)
        return sequences.to(self.device), counted.to(self.device)

    def _scaled(self, scores: Tensor) -> Tensor:
        if self.config.use_score_scaling:
            scores = self.running.scaled(scores, centred=self.config.use_score_norm)
        limit = self.config.score_clip
        return scores if limit is None else scores.clamp(-limit, limit)

    def _accumulate(self, part: Episodes, num_parts: int) -> dict[str, float]:
        """The gradient of a minibatch, whose loss is the mean over its tokens, divided by the parts of its update."""
        count = int(part.counted.sum())
        values, head = self._joint(part.sequences)
        hidden, weight, bias = head
        result = linear_ppo_loss(
            hidden, weight, part.sequences.response, part.logprobs, part.advantages, values, part.values, part.returns,
            part.counted, bias=bias, num_tokens=count * num_parts, settings=self.config.losses,
            logit_settings=self._joint.policy.logit_settings,
        )  # fmt: skip
        kept = float(result.metrics["ratio_sum"]) <= self.config.ratio_threshold * count
        if kept:
            result.loss.backward()
        for weight in self.update.parameters if not kept else ():
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        found = minibatch_statistics(part, result, values.detach(), num_parts, kept)
        if self.config.early_stopping:
            with torch.no_grad():
                new = self._joint.logprobs(part.sequences, head)
            found["policy/policykl"] = float((part.logprobs - new)[part.counted].mean())
        return found

    def batch(self) -> dict[str, Any]:
        queries, responses, scores = self._given
        return {
            "queries": [x.tolist() for x in queries],
            "responses": [x.tolist() for x in responses],
            "scores": scores.tolist(),
        }

    def extra_state(self) -> dict[str, Any]:
        return {"kl_coef": self.kl_coef, "running": self.running.state()}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.kl_coef = state["kl_coef"]
        self.running.load(state["running"])


def _check(size: int, queries: Any, responses: Any, scores: Any, masks: Any) -> None:
    """Raise ValueError for what `step` cannot learn from."""
    given = {"queries": queries, "responses": responses, "scores": scores}
    for name, rows in {**given, **({} if masks is None else {"response_masks": masks})}.items():
        if not isinstance(rows, list | tuple) or len(rows) != size:
            found = f"{len(rows)} rows" if isinstance(rows, list | tuple | Tensor) else type(rows).__name__
            raise ValueError(f"{name}: found {found}, accepted is a list of config.batch_size, {size}")
        for number, row in enumerate(rows):
            if name == "scores":
                if not torch.as_tensor(row).numel() == 1 or not bool(torch.as_tensor(row).isfinite().all()):
                    raise ValueError(f"scores: found {row} for response {number}, accepted are finite numbers")
            elif not isinstance(row, Tensor) or row.dim() != 1 or not len(row):
                found = f"shape {tuple(row.shape)}" if isinstance(row, Tensor) else type(row).__name__
                raise ValueError(f"{name}: found {found} in row {number}, accepted are tensors [L] of at least one id")
    for number, (row, mask) in enumerate(zip(responses, masks or responses, strict=True)):
        if len(row) != len(mask):
            raise ValueError(f"response_masks: found {len(mask)} in row {number}, accepted is one a token, {len(row)}")
