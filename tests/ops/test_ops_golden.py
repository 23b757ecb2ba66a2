"""Numbers worked out elsewhere: rewards, GAE, whitening, the PPO losses and the K-wise ranking loss.

Written to six decimals, so they are compared to half a unit of the sixth.
"""

import pytest
import torch

from instructrl.ops import advantages, aggregation, ppo, ranking
from instructrl.ops.ppo_settings import PPOSettings

MASK = torch.arange(5) < torch.tensor([[3], [5]])
VALUES = torch.tensor([[0.10, 0.20, -0.10, 0.30, 0.40], [0.00, -0.20, 0.50, 0.10, 0.25]], dtype=torch.float64)
OLD = torch.tensor([[-1, -0.5, -2, -0.3, -0.3], [-0.7, -1.2, -0.1, -0.9, -1.5]], dtype=torch.float64)
REF = torch.tensor([[-1.2, -0.4, -1.7, -0.3, -0.3], [-0.7, -1, -0.3, -1, -1.4]], dtype=torch.float64)
NEW = OLD + torch.tensor([[0.1, -0.3, 0.25, 0, 0], [-0.05, 0.4, 0, -0.2, 0.02]], dtype=torch.float64)
NEW_VALUES = torch.tensor([[0.4, 0.15, -0.5, 0, 0], [0.1, -0.3, 0.45, 0.5, 0.2]], dtype=torch.float64)
SCORES = torch.tensor([0.8, -0.6], dtype=torch.float64)

pytestmark = pytest.mark.usefixtures("each_backend")


def assert_to_six_decimals(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=0.51e-6)


def estimate():
    return advantages.ppo_advantages(OLD, REF, VALUES, SCORES, MASK, kl_coef=0.1)


def test_rewards_advantages_and_returns():
    found = estimate()
    assert_to_six_decimals(found.rewards, [[-0.02, 0.01, 0.83, 0, 0], [0, 0.02, -0.02, -0.01, -0.59]])
    assert_to_six_decimals(
        found.advantages, [[0.643825, 0.5935, 0.93, 0, 0], [-0.459203, -0.272845, -1.0451, -0.658, -0.84]]
    )
    assert_to_six_decimals(
        found.returns, [[0.743825, 0.7935, 0.83, 0, 0], [-0.459203, -0.472845, -0.5451, -0.558, -0.59]]
    )
    assert_to_six_decimals(found.stats[2:], [8.0, -0.2])


@pytest.mark.parametrize("by_stats", [False, True])
def test_whitened(by_stats):
    found = estimate()
    whitened = advantages.masked_whiten(found.advantages, MASK, stats=found.stats if by_stats else None)
    expected = [1.035621, 0.969, 1.414462, -0.424579, -0.177877, -1.200196, -0.687749, -0.928682]
    assert_to_six_decimals(whitened[MASK], expected)
    assert torch.equal(whitened[~MASK], torch.zeros(2, dtype=torch.float64))


def test_losses_of_the_fixture():
    found = estimate()
    whitened = advantages.masked_whiten(found.advantages, MASK)
    loss = ppo.ppo_loss(
        NEW, OLD, whitened, NEW_VALUES, VALUES, found.returns, MASK, ref_logprobs=REF, settings=PPOSettings(vf_coef=0.5)
    )
    assert_to_six_decimals(loss.policy_loss, -0.022474)
    assert_to_six_decimals(loss.value_loss, 0.341015)
    assert_to_six_decimals(loss.loss, -0.022474 + 0.5 * 0.341015)
    assert float(loss.metrics["num_policy_clipped"]) == 0.125 * 8
    assert float(loss.metrics["num_tokens"]) == 8
    policy = ppo.clipped_policy_loss(NEW, OLD, whitened, MASK)
    value = ppo.clipped_value_loss(NEW_VALUES, VALUES, found.returns, MASK)
    assert_to_six_decimals(policy.loss, -0.022474)
    assert_to_six_decimals(value.loss, 0.341015)


@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        ("token_mean", -0.022474),
        ("sequence_mean_of_token_sums", -0.089896),
        ("sequence_mean_of_token_means", -0.255296),
        ("constant", -0.017979),
    ],
)
def test_means_of_the_policy_loss(mean, expected):
    whitened = advantages.masked_whiten(estimate().advantages, MASK)
    of_tokens = aggregation.token_weights(MASK, mean)._asdict()
    assert_to_six_decimals(ppo.clipped_policy_loss(NEW, OLD, whitened, MASK, **of_tokens).loss, expected)


def test_kl_sums():
    same = ppo.ppo_loss(OLD, REF, VALUES, VALUES, VALUES, VALUES, MASK, ref_logprobs=REF)
    assert float(same.metrics["approx_kl_sum"]) / 8 == pytest.approx(0.015, abs=0.51e-6)
    assert float(same.metrics["ref_kl_sum"]) / 8 == pytest.approx(0.015488, abs=0.51e-6)
    assert float(estimate().stats[3]) / 8 == pytest.approx(-0.025, abs=0.51e-6)


def test_k_wise_ranking():
    scores = torch.tensor([[1.5, 0.2, -0.3, -1.0], [0.1, 0.4, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    ranks = torch.tensor([[0, 1, 2, 3], [0, 1, -1, -1]])
    found = ranking.pairwise_ranking_loss(scores, ranking.preferred_from_ranks(ranks))
    means = found.loss_sum / found.num_pairs
    assert_to_six_decimals(means, [0.268904, 0.854355])
    assert_to_six_decimals(means.mean(), 0.561629)
    assert_to_six_decimals(found.loss_sum.sum() / found.num_pairs.sum(), 0.35254)
    means.mean().backward()
    expected = [[-0.03599, -0.032904, 0.015632, 0.053262], [-0.287221, 0.287221, 0, 0]]
    assert_to_six_decimals(scores.grad, expected)
    assert found.num_pairs.tolist() == [6, 1]
    assert found.num_correct.tolist() == [6, 0]


def test_kl_rewards_add_up_to_the_sequence_log_ratio():
    rewards = advantages.ppo_advantages(OLD, REF, VALUES, torch.zeros(2), MASK, kl_coef=0.3).rewards
    log_ratio = [sum((OLD - REF)[row, :length].tolist()) for row, length in enumerate((3, 5))]
    assert rewards.sum(1).tolist() == pytest.approx([-0.3 * x for x in log_ratio], abs=1e-15)


def test_a_constant_added_to_every_score_changes_nothing():
    scores = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    preferred = ranking.preferred_from_ranks(torch.tensor([[0, 1, 1, 2]]).expand(6, 4))
    # A power of two that the scores can hold: the shifted scores differ by exactly the same numbers.
    grid = (scores * 1024).round() / 1024
    first = ranking.pairwise_ranking_loss(grid, preferred)
    second = ranking.pairwise_ranking_loss(grid + 4.0, preferred)
    assert torch.equal(first.loss_sum, second.loss_sum)
    assert first.num_pairs.tolist() == [5] * 6


def test_before_the_first_update_the_ratio_is_one():
    loss = ppo.ppo_loss(OLD, OLD, SCORES[:, None] * VALUES, VALUES, VALUES, VALUES, MASK, ref_logprobs=OLD)
    assert {name: float(x) for name, x in loss.metrics.items()} == {
        "num_tokens": 8,
        "num_policy_clipped": 0,
        "approx_kl_sum": 0,
        "ratio_sum": 8,
        "ratio_max": 1,
        "num_value_clipped": 0,
        "squared_value_error_sum": 0,
        "ref_kl_sum": 0,
    }
