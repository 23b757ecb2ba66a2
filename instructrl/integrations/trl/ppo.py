"""PPO as TRL had it up to 1.12, by its names and in its conventions, on the trainer of this package.

    from instructrl.integrations.trl import PPOConfig, PPOTrainer
    trainer = PPOTrainer(args, tokenizer, model, ref_model, reward_model, dataset, value_model)
    trainer.train()                                # goes on with `train(resume_from_checkpoint=True)`
    trainer.save_model("folder")                   # the policy, and in `value_model/` the value model

docs/hosts/from_trl_ppo.md has what to change in a script, and what differs.
"""

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from instructrl import distributed
from instructrl.data.settings import Limits
from instructrl.integrations.trl.arguments import PPOConfig
from instructrl.integrations.trl.episodes import Episodes
from instructrl.integrations.trl.running import Runs, adapted, check_network
from instructrl.integrations.trl.tokens import IdEncoder, Ids, filler_of, prompts_of, token_id
from instructrl.models.backbone import check_context
from instructrl.models.policy import Policy
from instructrl.models.scoring import RewardModel, ValueFunction
from instructrl.ops.advantage_settings import RewardSettings, WhitenSettings
from instructrl.ops.advantages import generalized_advantages, masked_whiten, ppo_advantages
from instructrl.ops.ppo import clipped_value_loss, kl_token_losses, linear_ppo_loss
from instructrl.ops.ppo_settings import KLEstimator, KLSettings
from instructrl.ops.ppo_terms import VALUE_METRICS
from instructrl.rollout.experience import Estimation, RolloutStatistics, network_outputs, rollout_statistics
from instructrl.rollout.generate import Sampling, response_texts, sample_rollout
from instructrl.rollout.randomness import keyed_seed
from instructrl.rollout.scoring import Reward, rewards, rollout_scores
from instructrl.trainers.ppo import PPOTrainer as Trainer
from instructrl.trainers.ppo import loss_settings
from instructrl.trainers.settings import PPOConfig as Settings
from instructrl.types import Experience, Rollout

# TRL divides logits by a temperature that is larger by this.
_TEMPERATURE = 1e-7
_COMPLETIONS = 0x636F6D70  # behind the seed in a key, as in `trainers.ppo`
_SAMPLE_TEMPERATURE = 0.01
# What arguments were called in TRL 0.12 to 0.15, and are called since.
_EARLIER = {"config": "args", "tokenizer": "processing_class", "policy": "model", "ref_policy": "ref_model"}


def _and_behind(mask: Tensor) -> Tensor:
    """[B, T] bool: the mask of responses and the position behind each, where the row has one."""
    return mask | torch.nn.functional.pad(mask[:, :-1], (1, 0))


class PPOTrainer(Runs, Trainer):
    """TRL's arguments in TRL's order; `args.output_dir` is the folder of the run.

    model, ref_model, value_model: transformers networks, trained and moved in place where they are trained; None for
    ref_model is a copy of the model, for value_model a copy of the reward model. reward_model: a network for sequence
    classification with one output, or any function from prompts and responses, both texts, to a number each.
    train_dataset: rows with `input_ids`, or with a `prompt` that is a text or messages. peft_config: `LoraConfig` of an
    adapter that the policy learns in place of its weights, on which the reference stands as well.
    Raises ValueError for what is not honoured.
    """

    def __init__(
        self,
        args: PPOConfig | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        model: PreTrainedModel | None = None,
        ref_model: PreTrainedModel | None = None,
        reward_model: PreTrainedModel | Reward | None = None,
        train_dataset: Sequence[Mapping[str, Any]] | None = None,
        value_model: PreTrainedModel | None = None,
        data_collator: Callable[[list[Any]], Mapping[str, Any]] | None = None,
        eval_dataset: Sequence[Mapping[str, Any]] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        callbacks: Sequence[Any] | None = None,
        peft_config: Any = None,
        **earlier: Any,
    ) -> None:
        given = {"args": args, "processing_class": processing_class, "model": model, "ref_model": ref_model}
        args, tokenizer, model, ref_model = _by_name(given, earlier)
        _refuse(optimizers, callbacks)
        if not isinstance(args, PPOConfig):
            raise TypeError(f"args: found {type(args).__name__}, accepted is instructrl.integrations.trl.PPOConfig")
        if model is None or tokenizer is None or train_dataset is None:
            raise ValueError("model, processing_class, train_dataset: found None among them, accepted are all three")
        networks = {"model": model, "ref_model": ref_model, "reward_model": reward_model, "value_model": value_model}
        for name, network in networks.items():
            check_network(name, network)
        if ref_model is model:
            raise ValueError("ref_model: found the model itself, accepted is another one, or None for a copy of it")
        self.args, self.processing_class = args, tokenizer
        prompts = prompts_of(train_dataset, tokenizer, data_collator)
        evaluated = () if eval_dataset is None else eval_dataset
        self.eval_prompts = prompts_of(evaluated, tokenizer, data_collator, "eval_dataset")
        longest = max(map(len, prompts + self.eval_prompts))
        limits = Limits(max_prompt_tokens=longest, max_response_tokens=args.response_length)
        check_context(model, limits.total, "response_length")
        device, stop = args.device(model), _stop(args, tokenizer)
        # As TRL does: what the model's own generation ends with is no end here.
        model.generation_config.eos_token_id = stop
        policy = Policy(model).to(device)
        if peft_config is not None:
            policy = adapted(policy, peft_config, args.seed)
        judge = RewardModel.of(reward_model, "reward_model") if isinstance(reward_model, PreTrainedModel) else None
        critic = copy.deepcopy(value_model) if value_model is reward_model else value_model
        super().__init__(
            policy,
            None if judge is None else judge.to(device),
            prompts,  # pyright: ignore[reportArgumentType]
            IdEncoder(tokenizer, limits, filler_of(tokenizer, stop), () if stop is None else (stop,)),
            _settings(args, len(prompts), device),
            seed=args.seed,
            reward=reward_model if judge is None else None,  # pyright: ignore[reportArgumentType]
            reference=None if ref_model is None else Policy(ref_model).to(device),
            value_function=None if critic is None else ValueFunction.of(critic, "value_model").to(device),
        )
        for update in (self.policy_update, self.value_update):
            args.schedule(update, self.num_steps)
        self._samples_every = 0
        if self.eval_prompts and args.num_sample_generations:
            self._samples_every = max(1, self.num_steps // args.num_sample_generations)

    def _train_step(self) -> tuple[dict[str, float], float]:
        found = super()._train_step()
        if self._samples_every and self.step % self._samples_every == 0:
            self.generate_completions(sampling=True)
        return found

    def _estimation(self) -> Estimation:
        estimation = super()._estimation()
        return replace(estimation, batch_size=self.args.local_rollout_forward_batch_size)

    def _experience(self, rollout: Rollout, scores: Tensor) -> tuple[Experience, RolloutStatistics]:
        """In TRL's conventions: the score is the reward of the position behind the response, where there is one."""
        args, counted = self.args, rollout.sequences.response_mask
        valued = _and_behind(counted)
        sequences = replace(rollout.sequences, response_mask=valued)
        logprobs, ref_logprobs, values = network_outputs(
            sequences, self.policy, self.reference, self.value_function, self._estimation()
        )
        estimator = KLEstimator(estimator=args.kl_estimator)
        estimate = ppo_advantages(
            logprobs, ref_logprobs, values, scores, counted, kl_coef=args.kl_coef, gamma=args.gamma, lam=args.lam,
            settings=RewardSettings(kl=estimator, score_at="behind"),
        )  # fmt: skip
        advantages, returns, token_rewards = estimate.advantages, estimate.returns, estimate.rewards
        if args.whiten_rewards:
            token_rewards = masked_whiten(token_rewards, valued, settings=WhitenSettings(center=False))
            advantages, returns = generalized_advantages(token_rewards, values, valued, gamma=args.gamma, lam=args.lam)
        experience = Episodes(
            sequences=sequences,
            scores=scores,
            logprobs=logprobs,
            ref_logprobs=ref_logprobs,
            values=values,
            advantages=masked_whiten(advantages, counted),
            returns=returns,
            counted=counted,
        )
        kl = kl_token_losses(logprobs, ref_logprobs, counted, settings=KLSettings(estimator=args.kl_estimator)).sum(
            dim=1
        )
        rewarded = estimate.rewards.masked_fill(~valued, 0.0).sum(dim=1)
        return experience, rollout_statistics(rollout, scores, rewarded, kl, advantages)

    def _scores(self, prompts: Sequence[Any], rollout: Rollout) -> Tensor:
        if self.reward_model is not None:
            scores = rollout_scores(self.reward_model, rollout, self.encoder.end_of_text)
        else:
            assert self.reward is not None
            texts = [self._text(ids) for ids in prompts]
            found = rewards(self.reward, texts, response_texts(rollout, self.encoder))
            scores = found.to(rollout.finished.device)
        if (penalty := self.args.missing_eos_penalty) is not None:
            ends = rollout.sequences.response == self.processing_class.eos_token_id
            scores = scores - penalty * ~(ends & rollout.sequences.response_mask).any(dim=1)
        return scores

    def _text(self, ids: Ids) -> str:
        return str(self.processing_class.decode(list(ids), skip_special_tokens=True))

    def _optimize(self, minibatch: Any, ptx_offset: int) -> dict[str, float]:
        self._num_counted = int(minibatch.counted.sum())
        return super()._optimize(minibatch, ptx_offset)

    def _accumulate(self, part: Any, num_tokens: int) -> dict[str, float]:
        """The policy's loss over the response, the value function's over one position more."""
        settings = loss_settings(self.config)
        hidden, weight, bias = self.policy.head_inputs(part.sequences)
        result = linear_ppo_loss(
            hidden, weight, part.sequences.response, part.logprobs, part.advantages, None, None, None, part.counted,
            bias=bias, temperature=self.config.temperature, num_tokens=self._num_counted, settings=settings,
            logit_settings=self.policy.logit_settings,
        )  # fmt: skip
        value = clipped_value_loss(
            self.value_function(part.sequences), part.values, part.returns, part.sequences.response_mask,
            num_tokens=num_tokens, settings=settings.value,
        )  # fmt: skip
        (result.loss + settings.vf_coef * value.loss).backward()
        of_values = {name: value.metrics[name] for name in VALUE_METRICS[1:]}  # the count is the policy's
        metrics = {**result.metrics, **of_values}
        return {
            "policy_loss": float(result.policy_loss.detach()),
            "value_loss": float(value.loss.detach()),
            **{name: float(number) for name, number in metrics.items()},
        }

    @torch.no_grad()
    def generate_completions(self, sampling: bool = False) -> list[dict[str, Any]]:
        """Responses to the prompts of `eval_dataset`, nearly without chance, with their scores; also in a file of
        `output_dir`. sampling: of a first batch alone. Raises ValueError where there is no such data set."""
        if not self.eval_prompts:
            raise ValueError("eval_dataset: found None, accepted are rows with prompts")
        prompts = self.eval_prompts[: self.args.per_device_eval_batch_size if sampling else None]
        settings = Sampling(
            seed=keyed_seed(self.seed, _COMPLETIONS, self.step),
            temperature=_SAMPLE_TEMPERATURE + _TEMPERATURE,
            max_response_tokens=self.args.response_length,
        )
        rollout = sample_rollout(self.policy, self.encoder, prompts, settings)  # pyright: ignore[reportArgumentType]
        columns = (
            map(self._text, prompts),
            response_texts(rollout, self.encoder),
            self._scores(prompts, rollout).tolist(),
        )
        names = ("query", "model response", "score")
        rows: list[dict[str, Any]] = [dict(zip(names, each, strict=True)) for each in zip(*columns, strict=True)]
        if distributed.is_main():
            self.args.folder.mkdir(parents=True, exist_ok=True)
            path = self.args.folder / f"completions-{self.step:08d}.jsonl"
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return rows

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Write the policy as a transformers folder, and in `value_model` of it the value model."""
        folder = Path(output_dir or self.args.folder)
        self.write("policy", folder, ends=self.encoder.ends)
        self.write("value_function", folder / "value_model")


def _by_name(given: dict[str, Any], earlier: dict[str, Any]) -> list[Any]:
    for name, value in earlier.items():
        now = _EARLIER.get(name)
        if now is None:
            raise TypeError(f"PPOTrainer: found an argument {name!r}, accepted are those of TRL 0.12 to 1.12")
        if given[now] is not None:
            raise TypeError(f"{name}: found beside {now}, which it is called since, accepted is one of the two")
        given[now] = value
    return list(given.values())


def _stop(args: PPOConfig, tokenizer: PreTrainedTokenizerBase) -> int | None:
    token = token_id(tokenizer, "eos")
    if token is None:
        raise ValueError("processing_class: found a tokenizer without an eos_token, accepted is one that has it")
    return args.stop_token_id if args.stop_token is None else token


def _refuse(optimizers: tuple[Any, Any], callbacks: Sequence[Any] | None) -> None:
    if any(each is not None for each in optimizers):
        raise ValueError("optimizers: found one, accepted is (None, None): each network has its AdamW by args")
    if callbacks:
        raise ValueError("callbacks: found some, accepted is None: output_dir/metrics.jsonl has a line a step")


def _settings(args: PPOConfig, num_prompts: int, device: torch.device) -> Settings:
    """The trainer's own."""
    batch = args.rows_of_a_batch
    episodes = args.total_episodes or int(args.num_train_epochs * num_prompts)
    return Settings(
        num_episodes=max(math.ceil(episodes / batch), 1) * batch,
        rollout_batch=batch,
        minibatch=batch // args.num_mini_batches,
        num_epochs=args.num_ppo_epochs,
        microbatch=args.per_device_train_batch_size,
        passes=args.passes(device),
        policy_adam=args.adam(),
        value_adam=args.adam(),
        warmup_iterations=0,
        kl_coef=args.kl_coef,
        discount=args.gamma,
        lam=args.lam,
        cliprange=args.cliprange,
        cliprange_value=args.cliprange_value,
        vf_coef=args.vf_coef,
        temperature=args.temperature + _TEMPERATURE,
        max_response_tokens=args.response_length,
        ema_decay=0.0,
    )
