"""Conventions of rewards, advantages and whitening: worked numbers, limits that must hold, numbers of other projects.

Numbers of others are written to six decimals, so they are compared to half a unit of the sixth.
"""

import math

import pytest
import torch
from test_ops_golden import MASK, OLD, REF, SCORES, VALUES, assert_to_six_decimals

from instructrl.ops.advantage_settings import GAESettings, RewardSettings, WhitenSettings
from instructrl.ops.advantages import Ends, generalized_advantages, masked_whiten, ppo_advantages
from instructrl.ops.cases import CASES
from instructrl.ops.ppo_settings import KLEstimator

D = torch.float64
ALL = torch.ones(1, 4, dtype=torch.bool)
pytestmark = pytest.mark.usefixtures("each_backend")


def row(*numbers):
    return torch.tensor([numbers], dtype=D)


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-14, atol=1e-14)


def random(*shape):
    return torch.randn(shape, dtype=D, generator=torch.Generator().manual_seed(len(shape)))


BEHIND = RewardSettings(score_at="behind")


def test_the_score_one_behind_the_last_token():
    """As TRL, torchtune and DeepSpeed-Chat pay it; a row that is full pays it on its last token."""
    found = ppo_advantages(OLD, REF, VALUES, SCORES, MASK, kl_coef=0.1, settings=BEHIND)
    assert_to_six_decimals(found.rewards, [[-0.02, 0.01, 0.03, 0.8, 0], [0, 0.02, -0.02, -0.01, -0.59]])
    second = [-0.459203, -0.272845, -1.0451, -0.658, -0.84]
    assert_to_six_decimals(found.advantages, [[0.621263, 0.56975, 0.905, 0, 0], second])
    returns = [[0.721263, 0.76975, 0.805, 0.8, 0], [-0.459203, -0.472845, -0.5451, -0.558, -0.59]]
    assert_to_six_decimals(found.returns, returns)
    assert_to_six_decimals(found.stats[2:], [8.0, -0.2])


@pytest.mark.parametrize("cu_seqlens", [None, torch.tensor([0, 0, 0])], ids=["padded", "packed"])
def test_no_position_has_none_behind_it(each_backend, cu_seqlens):
    nothing = torch.zeros((2, 0) if cu_seqlens is None else 0)
    arguments = (nothing, nothing, nothing, torch.ones(2), nothing > 0)
    found = ppo_advantages(*arguments, kl_coef=0.1, cu_seqlens=cu_seqlens, settings=BEHIND)
    assert found.returns.shape == nothing.shape
    assert found.stats.tolist() == [0.0] * 4


@pytest.mark.parametrize("by_stats", [False, True])
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param(
            WhitenSettings(ddof=0, epsilon_at="clamp"),
            [1.107125, 1.035904, 1.512124, -0.453894, -0.190158, -1.283063, -0.735234, -0.992803],
            id="openrlhf",
        ),
        pytest.param(
            WhitenSettings(ddof=0, epsilon=1e-5, epsilon_at="deviation"),
            [1.107109, 1.03589, 1.512102, -0.453888, -0.190155, -1.283045, -0.735224, -0.992789],
            id="areal",
        ),
        pytest.param(
            WhitenSettings(center=False),
            [0.897143, 0.830522, 1.275984, -0.563057, -0.316354, -1.338674, -0.826227, -1.06716],
            id="torchtune",
        ),
    ],
)
def test_whitening_of_others(settings, expected, by_stats):
    found = ppo_advantages(OLD, REF, VALUES, SCORES, MASK, kl_coef=0.1)
    stats = found.stats if by_stats else None
    assert_to_six_decimals(masked_whiten(found.advantages, MASK, stats=stats, settings=settings)[MASK], expected)


def test_whitening_that_counts_padding():
    """trlx has no mask: what does not count is 0 and counts."""
    found = ppo_advantages(OLD, REF, VALUES, SCORES, MASK, kl_coef=0.1)
    whitened = masked_whiten(found.advantages, torch.ones_like(MASK))[MASK]
    assert_to_six_decimals(
        whitened, [1.128385, 1.053133, 1.556311, -0.521003, -0.242337, -1.397111, -0.81827, -1.09042]
    )


def test_torchtune_from_rewards_to_advantages():
    found = ppo_advantages(OLD, REF, VALUES, SCORES, MASK, kl_coef=0.1, settings=BEHIND)
    whitened = masked_whiten(found.advantages, MASK, settings=WhitenSettings(center=False))
    assert_to_six_decimals(
        whitened, [[0.886123, 0.816861, 1.26763, 0, 0], [-0.566646, -0.316073, -1.35443, -0.833944, -1.078657]]
    )


def test_kl_estimates_and_clamps_of_rewards():
    log_ratio = [0.5, -0.25, 3.0, -3.0]
    new, zero = row(*log_ratio), row(0, 0, 0, 0)
    for estimator, formula in {
        "k1": lambda d: d,
        "k2": lambda d: 0.5 * d * d,
        "k3": lambda d: math.exp(-d) - 1 + d,
        "abs": abs,
    }.items():
        for limits in [(None, None), (2.0, None), (None, 1.5), (2.0, 1.5)]:
            cut_in, cut_out = (math.inf if x is None else x for x in limits)
            expected = [formula(max(-cut_in, min(cut_in, d))) for d in log_ratio]
            expected = [-0.1 * max(-cut_out, min(cut_out, x)) for x in expected]
            kl = KLEstimator(estimator=estimator, input_clamp=limits[0], output_clamp=limits[1])
            settings = RewardSettings(kl=kl)
            found = ppo_advantages(new, zero, zero, torch.zeros(1, dtype=D), ALL, kl_coef=0.1, settings=settings)
            assert_same(found.rewards, row(*expected))
            assert float(found.stats[3]) == pytest.approx(sum(log_ratio), abs=1e-15)


def test_clipped_scores():
    zero, scores = torch.zeros(3, 4, dtype=D), torch.tensor([7.0, -7.0, 0.5], dtype=D)
    settings = RewardSettings(score_clip=2.0)
    found = ppo_advantages(zero, zero, zero, scores, ALL.expand(3, 4), kl_coef=0.1, settings=settings)
    assert found.rewards[:, 3].tolist() == [2.0, -2.0, 0.5]


def test_lambda_of_one_gives_returns_of_whole_episodes():
    """`A + V = r[0] + g r[1] + ... + g^n b`; and a lambda of the returns alone leaves the advantages as they are."""
    rewards, values, g = random(1, 4), row(0.3, -0.2, 0.5, 0.1), 0.9
    bootstrap = torch.tensor([2.0], dtype=D)
    expected = [sum(g**k * float(rewards[0, t + k]) for k in range(4 - t)) + g ** (4 - t) * 2.0 for t in range(4)]
    both = generalized_advantages(rewards, values, ALL, gamma=g, lam=1.0, ends=Ends(bootstrap=bootstrap))
    assert_same(both[1], row(*expected))
    plain = generalized_advantages(rewards, values, ALL, gamma=g, lam=0.5, ends=Ends(bootstrap=bootstrap))
    settings, ends = GAESettings(value_lam=1.0), Ends(bootstrap=bootstrap)
    apart = generalized_advantages(rewards, values, ALL, gamma=g, lam=0.5, ends=ends, settings=settings)
    assert_same(apart[0], plain[0])
    assert_same(apart[1], row(*expected))


def test_lambda_of_zero_gives_the_residuals_by_given_values():
    rewards, values, behind = random(1, 4), row(0.3, -0.2, 0.5, 0.1), row(1.0, 2.0, 3.0, 4.0)
    found = generalized_advantages(rewards, values, ALL, gamma=0.5, lam=0.0, ends=Ends(next_values=behind))[0]
    assert_same(found, rewards + 0.5 * behind - values)


def test_an_episode_that_ends_inside_a_sequence_is_two_sequences():
    rewards, values = random(1, 4), row(0.3, -0.2, 0.5, 0.1)
    dones = torch.tensor([[False, True, False, False]])
    found = generalized_advantages(rewards, values, ALL, gamma=0.9, lam=0.8, ends=Ends(dones=dones))
    flat, offsets = (rewards[0], values[0], ALL[0]), torch.tensor([0, 2, 4])
    expected = generalized_advantages(*flat, gamma=0.9, lam=0.8, cu_seqlens=offsets)
    for one, two in zip(found, expected, strict=True):
        assert_same(one[0], two)
    # A cut one, whose value behind is known: only the trace ends.
    behind = row(-0.2, 7.0, 0.1, 0.0)
    found = generalized_advantages(rewards, values, ALL, gamma=0.9, lam=0.8, ends=Ends(dones=dones, next_values=behind))
    expected[0][:2] += 0.9 * 7.0 * torch.tensor([0.9 * 0.8, 1.0], dtype=D)
    assert_same(found[0][0], expected[0])


def test_nothing_comes_over_the_end_of_an_episode():
    rewards, values = row(1.0, 2.0, math.inf, math.nan).float(), torch.zeros(1, 4)
    dones = torch.tensor([[False, True, False, False]])
    for settings in (GAESettings(), GAESettings(value_lam=0.5)):
        found = generalized_advantages(rewards, values, ALL, ends=Ends(dones=dones), settings=settings)
        assert all(x[0, :2].isfinite().all() for x in found)


def test_gaps_that_count_discount_what_is_behind_them():
    """V and r are 0 at a masked step between: `A[0] = r[0] + g (0) - V[0] + g l (g V[2] + g l A[2])`."""
    mask = torch.tensor([[True, False, True, False]])
    rewards, values, g, lam = row(1.0, math.nan, 3.0, math.inf), row(0.25, math.inf, 0.5, math.nan), 0.9, 0.8
    advantages, returns = generalized_advantages(
        rewards, values, mask, gamma=g, lam=lam, settings=GAESettings(gaps="count")
    )
    last = 3.0 - 0.5
    first = 1.0 - 0.25 + g * lam * (g * 0.5 + g * lam * last)
    assert_same(advantages, row(first, 0, last, 0))
    assert_same(returns, row(first + 0.25, 0, last + 0.5, 0))
    # A value behind the last token is not a gap away from it.
    found = generalized_advantages(
        rewards, values, mask, ends=Ends(bootstrap=torch.tensor([2.0])), settings=GAESettings(gaps="count")
    )
    assert float(found[0][0, 2]) == pytest.approx(3.0 + 2.0 - 0.5)


def test_a_lambda_for_each_sequence_is_a_call_for_each():
    rewards, values, mask = random(3, 4), random(4, 3).t(), torch.ones(3, 4, dtype=torch.bool)
    lam = torch.tensor([0.0, 0.5, 1.0], dtype=D)
    found = generalized_advantages(rewards, values, mask, lam=lam, gamma=0.9)
    for b in range(3):
        rows = (rewards[b : b + 1], values[b : b + 1], mask[b : b + 1])
        alone = generalized_advantages(*rows, lam=float(lam[b]), gamma=0.9)
        for many, one in zip(found, alone, strict=True):
            assert_same(many[b : b + 1], one)


def test_groups_are_whitened_alone():
    x, groups = random(5, 6), torch.tensor([2, 0, 2, 0, 2], dtype=torch.int32)
    mask = torch.rand(5, 6, generator=torch.Generator().manual_seed(0)) < 0.8
    for settings in (WhitenSettings(), WhitenSettings(center=False, ddof=0, epsilon=0.1, epsilon_at="deviation")):
        found = masked_whiten(x, mask, groups=groups, num_groups=3, settings=settings)
        for group in (0, 2):
            own = groups == group
            assert_same(found[own], masked_whiten(x[own], mask[own], settings=settings))


class _Called(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_settings_that_are_not_used_cost_nothing(each_backend):
    """The kernels of one discount run as if there were no settings, given as defaults or not."""
    if each_backend == "reference":
        pytest.skip("it has no kernels")
    zeros, scores, mask = torch.zeros(2, 4), torch.zeros(2), torch.ones(2, 4, dtype=torch.bool)
    with _Called() as called:
        generalized_advantages(zeros, zeros, mask, ends=Ends(), settings=GAESettings())
        ppo_advantages(zeros, zeros, zeros, scores, mask, kl_coef=0.1, settings=RewardSettings(score_clip=1.0))
    assert not [name for name in called.names if "general_advantages" in name]
    with _Called() as called:
        generalized_advantages(zeros, zeros, mask, settings=GAESettings(value_lam=1.0))
    assert [name for name in called.names if "general_advantages" in name]


def test_settings_compile_without_a_graph_break(each_backend):
    def named(op, name):
        return next(case for case in CASES if (case.op, case.name) == (f"advantages.{op}", name)).make(torch.float32)

    def all_of_them(gae, fused, whiten):
        return generalized_advantages(**gae), ppo_advantages(**fused), masked_whiten(**whiten)

    arguments = (
        named("generalized_advantages", "packed dones"),
        named("ppo_advantages", "gaps that count, k3"),
        named("masked_whiten", "(9, 70) variance, 4 groups"),
    )
    # Through the reference's many small steps autograd's tracing takes twenty seconds.
    backend = "eager" if each_backend == "reference" else "aot_eager"
    found = torch.compile(all_of_them, fullgraph=True, backend=backend)(*arguments)
    torch.testing.assert_close(found, all_of_them(*arguments))
    torch.compiler.reset()
