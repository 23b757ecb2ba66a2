"""Wrong arguments raise ValueError with the argument, what was found and what is accepted."""

import pytest
import torch

from instructrl.ops import advantages, logprobs, ppo, ranking, sampling
from instructrl.ops.cases import CASES
from instructrl.ops.ppo_settings import KLSettings, PolicySettings, PPOSettings

MASK = torch.ones(2, 3, dtype=torch.bool)
X = torch.zeros(2, 3)
TOKENS = torch.zeros(2, 3, dtype=torch.int64)
LOGITS, WEIGHT = torch.zeros(2, 3, 5), torch.zeros(7, 5)
VALUES = (X, X, X)

WRONG = {
    r"scores: found shape \(2, 3, 1\)": lambda: ranking.pairwise_ranking_loss(X[..., None], MASK),
    r"scores: found dtype torch.int64": lambda: ranking.pairwise_ranking_loss(TOKENS, MASK),
    r"preferred: found shape \(2, 3\), accepted is \(2, 3, 3\)": lambda: ranking.pairwise_ranking_loss(X, MASK),
    r"preferred: found a number other than 0 and 1": lambda: ranking.pairwise_ranking_loss(
        X, torch.full((2, 3, 3), 0.5)
    ),
    r"preferred: found device meta": lambda: ranking.pairwise_ranking_loss(
        X, torch.ones(2, 3, 3, dtype=torch.bool, device="meta")
    ),
    r"ranks: found shape": lambda: ranking.preferred_from_ranks(X[0]),
    r"tokens: found shape \(3,\)": lambda: logprobs.token_logprobs(LOGITS, TOKENS[0]),
    r"tokens: found dtype torch.float32": lambda: logprobs.token_logprobs(LOGITS, X),
    r"tokens: found an id out of range where the mask is True, accepted are ids from 0 to 4": (
        lambda: logprobs.token_logprobs(LOGITS, TOKENS + 5)
    ),
    r"tokens: found an id .* from 0 to 6": lambda: logprobs.linear_token_logprobs(LOGITS, WEIGHT, TOKENS - 1),
    r"temperature: found 0": lambda: logprobs.token_logprobs(LOGITS, TOKENS, temperature=0),
    r"temperature: found nan": lambda: sampling.sample_tokens(X, X[:, 0], temperature=float("nan")),
    r"weight: found shape \(7, 4\)": lambda: logprobs.linear_token_logprobs(LOGITS, WEIGHT[:, :4], TOKENS),
    r"bias: found shape \(6,\)": lambda: logprobs.linear_token_logprobs(LOGITS, WEIGHT, TOKENS, bias=torch.zeros(6)),
    r"max_workspace_bytes: found 10, accepted is at least 112": lambda: logprobs.linear_token_logprobs(
        LOGITS, WEIGHT, TOKENS, max_workspace_bytes=10
    ),
    r"values: found shape \(2, 2\)": lambda: advantages.generalized_advantages(X, X[:, :2], MASK),
    r"gamma: found 1.5, accepted is a number from 0 to 1": lambda: advantages.generalized_advantages(
        X, X, MASK, gamma=1.5
    ),
    r"rewards: found shape \(2, 3\), accepted is packed": lambda: advantages.generalized_advantages(
        X, X, MASK, cu_seqlens=torch.tensor([0, 3])
    ),
    r"cu_seqlens: found other offsets": lambda: advantages.generalized_advantages(
        X[0], X[0], MASK[0], cu_seqlens=torch.tensor([0, 2])
    ),
    r"scores: found shape \(3,\)": lambda: advantages.ppo_advantages(*VALUES, X[0], MASK, kl_coef=0.1),
    r"kl_coef: found inf": lambda: advantages.ppo_advantages(*VALUES, X[:, 0], MASK, kl_coef=float("inf")),
    r"stats: found shape \(2,\)": lambda: advantages.masked_whiten(X, MASK, stats=X[:, 0]),
    r"mask: found a number other than 0 and 1": lambda: ppo.clipped_policy_loss(*VALUES, TOKENS - 1),
    r"mask: found dtype torch.complex64": lambda: ppo.clipped_policy_loss(*VALUES, X.to(torch.complex64)),
    r"num_tokens: found 6.5 of type float": lambda: ppo.clipped_value_loss(*VALUES, MASK, num_tokens=6.5),
    r"weights: found shape \(2,\)": lambda: ppo.clipped_policy_loss(*VALUES, MASK, weights=X[:, 0]),
    r"weights: found one that is negative": lambda: ppo.clipped_value_loss(*VALUES, MASK, weights=X - 1),
    r"num_tokens: found -1": lambda: ppo.clipped_value_loss(*VALUES, MASK, num_tokens=-1),
    r"num_tokens: found a tensor of shape \(1,\)": lambda: ppo.clipped_value_loss(
        *VALUES, MASK, num_tokens=torch.ones(1)
    ),
    r"returns: found shape \(2, 2\)": lambda: ppo.ppo_loss(*VALUES, X, X, X[:, :2], MASK),
    r"ref_logprobs: found None with a KL coefficient of 0.1": lambda: ppo.ppo_loss(
        *VALUES, *VALUES, MASK, settings=PPOSettings(kl=KLSettings(coef=0.1))
    ),
    r"logprobs: found shape \(3,\) with ratio 'sequence'": lambda: ppo.clipped_policy_loss(
        X[0], X[0], X[0], MASK[0], settings=PolicySettings(ratio="sequence")
    ),
    r"old_logprobs: found shape \(3,\)": lambda: ppo.linear_ppo_loss(LOGITS, WEIGHT, TOKENS, X[0], *VALUES, X, MASK),
    r"uniforms: found dtype torch.int64": lambda: sampling.sample_tokens(X, TOKENS[:, 0]),
    r"uniforms: found a number outside": lambda: sampling.sample_tokens(X, torch.ones(2)),
    r"logits: found a vocabulary of 0 tokens": lambda: sampling.sample_tokens(X[:, :0], X[:, 0]),
}


@pytest.mark.parametrize("message", WRONG)
def test_value_error(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()


@pytest.mark.parametrize("case", [case for case in CASES if not case.large], ids=lambda case: f"{case.op}-{case.name}")
def test_cases_move_bytes(case):
    arguments = case.make(torch.float32)
    largest = max(x.numel() for x in arguments.values() if isinstance(x, torch.Tensor))
    assert case.bytes_moved(arguments) >= largest
    assert case.bytes_moved(case.make(torch.float64)) >= case.bytes_moved(arguments)
