"""NeMo-RL's PPO with a critic, and its GRPO with truncated importance sampling, on a tiny model.

Its own batches, log-probabilities, advantages and loss functions in the order in which its workers call them, in one
process without Ray. Responses are words at random, so no engine samples them.
"""

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

os.environ.setdefault("NO_VCS_VERSION", "1")

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from benchmarks.end_to_end.host_runs.record import Record, main
from instructrl.integrations import nemo_rl as adapter

VOCABULARY, PROMPT, RESPONSE, BATCH, MICRO, SAMPLES, EPOCHS = 2000, 12, 24, 16, 8, 4, 2


class Critic(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.model, self.head = LlamaModel(config), nn.Linear(config.hidden_size, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.model(tokens).last_hidden_state)


def _logprobs(model: nn.Module, tokens: Tensor) -> Tensor:
    """[B, S], 0 at the first, as its workers return them."""
    from nemo_rl.distributed.model_utils import get_next_token_logprobs_from_logits

    with torch.no_grad():
        found = get_next_token_logprobs_from_logits(input_ids=tokens, next_token_logits=model(tokens).logits)
    return torch.cat([torch.zeros_like(found[:, :1]), found], 1)


def rollout(policy: nn.Module, reference: nn.Module, step: int) -> tuple[Any, Tensor]:
    """A batch, without advantages, and a reward for each of its samples: the share of even words."""
    from nemo_rl.distributed.batched_data_dict import BatchedDataDict

    generator = torch.Generator().manual_seed(step)
    prompts = torch.randint(3, VOCABULARY, (BATCH // SAMPLES, PROMPT), generator=generator)
    responses = torch.randint(3, VOCABULARY, (BATCH, RESPONSE), generator=generator)
    lengths = torch.randint(RESPONSE // 3, RESPONSE + 1, (BATCH, 1), generator=generator)
    counted = (torch.arange(RESPONSE) < lengths).long()
    tokens = torch.cat([prompts.repeat_interleave(SAMPLES, 0), responses * counted], 1)
    own = _logprobs(policy, tokens)
    columns = {
        "input_ids": tokens,
        "token_mask": torch.cat([torch.zeros(BATCH, PROMPT), counted.float()], 1),
        "sample_mask": torch.ones(BATCH),
        "prev_logprobs": own,
        # An engine that computes in other kernels is a little off.
        "generation_logprobs": own + 0.2 * torch.randn(own.shape, generator=generator),
        "reference_policy_logprobs": _logprobs(reference, tokens),
    }
    return BatchedDataDict(columns), ((responses % 2 == 0) * counted).sum(1) / lengths.squeeze(1)


def update(model: nn.Module, optimizer: torch.optim.Optimizer, loss_fn: Any, batch: Any) -> tuple[float, float]:
    """A step of its workers: counts of the whole batch, then micro-batches. Loss and norm of the gradient."""
    from nemo_rl.algorithms.loss import prepare_loss_input

    tokens = (batch["token_mask"][:, 1:] * batch["sample_mask"].unsqueeze(-1)).sum()
    counts, total = (batch["sample_mask"].sum(), tokens), 0.0
    for part in batch.make_microbatch_iterator(MICRO):
        found = model(part["input_ids"])
        inputs, part = prepare_loss_input(getattr(found, "logits", found), part, loss_fn)
        loss, metrics = loss_fn(data=part, global_valid_seqs=counts[0], global_valid_toks=counts[1], **inputs)
        loss.backward()
        total += metrics["loss"]
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), 1.0))
    optimizer.step()
    optimizer.zero_grad()
    return total, norm


def _models() -> tuple[list[nn.Module], LlamaForCausalLM]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=64, **sizes)
    policy, reference = LlamaForCausalLM(shape), LlamaForCausalLM(shape)
    reference.load_state_dict(policy.state_dict())
    return [policy, Critic(shape)], reference


def _advantages(batch: Any, rewards: Tensor, critic: nn.Module | None, config: Any) -> None:
    from nemo_rl.algorithms import advantage_estimator

    if critic is None:
        given = SimpleNamespace(use_leave_one_out_baseline=True, normalize_rewards=True)
        estimator = advantage_estimator.GRPOAdvantageEstimator(given, config)
        batch["advantages"] = estimator.compute_advantage(batch["input_ids"][:, :PROMPT], rewards, batch["token_mask"])
        return
    with torch.no_grad():
        values = critic(batch["input_ids"]).squeeze(-1)
    batch["values"] = torch.cat([torch.zeros_like(values[:, :1]), values[:, :-1]], 1)
    given = {"gae_lambda": 0.95, "gae_gamma": 1.0, "normalize_advantages": True, "gae_lambda_value": 1.0}
    given |= {"gae_lambda_policy": None, "length_adaptive_alpha": 0.05}
    estimator = advantage_estimator.GeneralizedAdvantageEstimator(given, config)
    ids = batch["input_ids"][:, :PROMPT]
    found = estimator.compute_advantage(ids, rewards, batch["token_mask"], batch["values"])
    batch["advantages"], batch["returns"] = found


def _run(*, with_critic: bool, **options: Any) -> Callable[[Record, int], None]:
    def train(record: Record, steps: int) -> None:
        from nemo_rl.algorithms import loss as losses

        config = losses.ClippedPGLossConfig(**options)
        # Where the adapter is not installed they come back as they are.
        policy_loss = adapter.with_ours(losses.ClippedPGLossFn(config))
        value_loss = adapter.with_ours(losses.MseValueLossFn(losses.MseValueLossConfig(scale=0.4, cliprange=0.2)))
        models, reference = _models()
        models = models if with_critic else models[:1]
        optimizers = [torch.optim.SGD(x.parameters(), 0.1) for x in models]
        losses_of = list(zip(models, optimizers, (policy_loss, value_loss), strict=False))
        record.start()
        # It moves tokens to the GPU that it takes to be there.
        with mock.patch.object(Tensor, "cuda", lambda x: x):
            for step in range(steps):
                batch, rewards = rollout(models[0], reference, step)
                _advantages(batch, rewards, models[1] if with_critic else None, config)
                found = [update(*each, batch) for _ in range(EPOCHS) for each in losses_of]
                record.step(sum(x for x, _ in found), sum(x**2 for _, x in found) ** 0.5)
        record.end(x for model in models for x in model.parameters())

    return train


TRAINERS = {
    "ppo": _run(with_critic=True, ratio_clip_max=0.28, ratio_clip_c=10.0, reference_policy_kl_penalty=0.05),
    "grpo": _run(
        with_critic=False,
        use_importance_sampling_correction=True,
        truncated_importance_sampling_type="tis",
        truncated_importance_sampling_ratio=1.2,
        token_level_loss=False,
    ),
}

if __name__ == "__main__":
    main("nemo_rl", TRAINERS)
