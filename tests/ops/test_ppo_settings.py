"""The formulas that settings of PPO's losses choose, against numbers worked out here and autograd in float64."""

import math

import pytest
import torch

from instructrl.ops import aggregation, ppo, ppo_settings, ppo_terms
from instructrl.ops.ppo_settings import KL_ESTIMATORS, KLEstimator, KLSettings, PolicySettings, PPOSettings

D = torch.float64


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # The log-probability is log 2 above, and log 2 below, that of the reference.
        (KLEstimator(estimator="k1"), (math.log(2), -math.log(2))),
        (KLEstimator(estimator="abs"), (math.log(2), math.log(2))),
        (KLEstimator(estimator="k2"), (0.5 * math.log(2) ** 2, 0.5 * math.log(2) ** 2)),
        (KLEstimator(estimator="k3"), (0.5 - 1 + math.log(2), 2 - 1 - math.log(2))),
        (KLEstimator(estimator="k1", output_clamp=0.5), (0.5, -0.5)),
        (KLEstimator(estimator="k2", input_clamp=0.5), (0.125, 0.125)),
        (KLEstimator(estimator="k3", input_clamp=0.5), (math.exp(-0.5) - 0.5, math.exp(0.5) - 1.5)),
        (KLEstimator(estimator="k3", output_clamp=0.25), (math.log(2) - 0.5, 0.25)),
    ],
)
def test_kl_of_one_token(settings, expected):
    log_ratio = torch.tensor([math.log(2), -math.log(2)], dtype=D)
    torch.testing.assert_close(ppo_terms.kl_term(log_ratio, settings), torch.tensor(expected, dtype=D))


def test_every_estimator_has_its_formula_and_derivative():
    assert tuple(ppo_terms.KL_ESTIMATES) == KL_ESTIMATORS
    d = torch.tensor([-3.0, -0.2, 0.0, 0.7, 2.5], dtype=D, requires_grad=True)
    for estimate in ppo_terms.KL_ESTIMATES.values():
        value, derivative = estimate(d)
        torch.testing.assert_close(derivative.detach(), torch.autograd.grad(value.sum(), d)[0])


# ---- worked numbers of one token each, on every backend


ONE = torch.ones(1, dtype=torch.bool)


def token(function, new, *others, **settings):
    """Loss of one token and its derivative by the log-probability, or value, `new`."""
    x = torch.tensor([new], dtype=D, requires_grad=True)
    others = [None if y is None else torch.tensor([y], dtype=D) for y in others]
    loss = function(x, *others, ONE, **settings)
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    return float(loss.detach()), float(gradient)


def policy(ratio, advantage, new=-1.5, **settings):
    return token(ppo.policy_token_losses, new, new - math.log(ratio), advantage, settings=PolicySettings(**settings))


def given(*args, **settings):
    """A call of `policy` that is still to be made."""
    return args, settings


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


BOUNDS = {"clip_low": 0.1, "clip_high": 0.28}
WORKED = [
    # Above and below the bounds, where the clip holds and where it would hide a worse loss.
    (given(2.0, 3.0, **BOUNDS), (-1.28 * 3, 0)),
    (given(2.0, -3.0, **BOUNDS), (6, 6)),
    (given(0.5, -3.0, **BOUNDS), (0.9 * 3, 0)),
    (given(0.5, 3.0, **BOUNDS), (-1.5, -1.5)),
    (given(1.25, 3.0, **BOUNDS), (-3.75, -3.75)),
    # Bounds that nothing reaches: the surrogate of Schulman et al. before it is clipped.
    (given(50.0, 3.0, clip_low=1.0, clip_high=math.inf), (-150, -150)),
    # Dual clip: at most 3 |A| where the advantage is negative, nothing elsewhere.
    (given(10.0, -2.0, dual_clip=3.0), (6, 0)),
    (given(2.5, -2.0, dual_clip=3.0), (5, 5)),
    (given(10.0, 2.0, dual_clip=3.0), (-2.4, 0)),
    # A clamp of the log ratio at log 4, then at log 1.1, which is inside the clip.
    (given(10.0, -2.0, log_ratio_clamp=math.log(4)), (8, 0)),
    (given(1.2, 2.0, log_ratio_clamp=math.log(1.1)), (-2.2, 0)),
    (given(0.5, 2.0, log_ratio_clamp=math.log(1.25)), (-1.6, 0)),
    # CISPO: the clipped ratio is a weight of REINFORCE's loss, so no token's gradient is lost.
    (given(2.0, 3.0, surrogate="cispo", **BOUNDS), (-1.28 * 3 * -1.5, -1.28 * 3)),
    (given(0.5, -3.0, surrogate="cispo", **BOUNDS), (0.9 * 3 * -1.5, 0.9 * 3)),
    (given(1.2, 3.0, surrogate="cispo", **BOUNDS), (-1.2 * 3 * -1.5, -1.2 * 3)),
    (given(2.0, 3.0, surrogate="reinforce"), (4.5, -3)),
    # SAPO: -A f(r), f = 4 sigmoid(t (r - 1)) / t, f' = 4 sigmoid(t (r - 1)) sigmoid(-t (r - 1)).
    (given(2.0, 3.0, surrogate="sapo"), (-12 * sigmoid(1), -12 * sigmoid(1) * sigmoid(-1) * 2)),
    (
        given(2.0, -3.0, surrogate="sapo", negative_temperature=0.5),
        (24 * sigmoid(0.5), 12 * sigmoid(0.5) * sigmoid(-0.5) * 2),
    ),
    # At ratio 1 its gradient is that of the policy gradient, whatever the temperature.
    (given(1.0, 3.0, surrogate="sapo", positive_temperature=7.0), (-6 / 7, -3)),
]


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize(("call", "expected"), WORKED)
def test_a_surrogate_of_one_token(call, expected):
    args, settings = call
    assert policy(*args, **settings) == pytest.approx(expected, rel=1e-14, abs=1e-14)


def kl(d, ratio=1.0, **settings):
    """d: log-probability above that of the reference."""
    x = torch.tensor([-1.5], dtype=D, requires_grad=True)
    old = x.detach() - math.log(ratio)
    loss = ppo.kl_token_losses(x, x.detach() - d, ONE, old_logprobs=old, settings=KLSettings(**settings))
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    return float(loss.detach()), float(gradient)


def k3(d):
    return math.exp(-d) - 1 + d


KL_WORKED = [
    (given(-0.5, estimator="k1"), (-0.5, 1)),
    (given(-0.5, estimator="abs"), (0.5, -1)),
    (given(-0.5, estimator="k2"), (0.125, -0.5)),
    (given(-0.5), (k3(-0.5), 1 - math.exp(0.5))),
    # What is clamped has no gradient.
    (given(-0.5, input_clamp=0.25), (k3(-0.25), 0)),
    (given(-0.5, output_clamp=0.1), (0.1, 0)),
    (given(-0.5, input_clamp=1.0, output_clamp=1.0), (k3(-0.5), 1 - math.exp(0.5))),
    # The value of one estimator with the gradient of k2, which no clamp stops.
    (given(-0.5, straight_through=True, input_clamp=0.25), (k3(-0.25), -0.5)),
    (given(-3.0, straight_through=True, estimator="k1", output_clamp=1.0), (-1, -3)),
    (given(-0.5, 4.0, importance="constant"), (4 * k3(-0.5), 4 * (1 - math.exp(0.5)))),
    # d(r k)/dx = r k' + r k.
    (given(-0.5, 4.0, importance="full"), (4 * k3(-0.5), 4 * (1 - math.exp(0.5)) + 4 * k3(-0.5))),
    (given(-0.5, 4.0, importance="full", straight_through=True), (4 * k3(-0.5), 4 * -0.5 + 4 * 0.125)),
    (given(-0.5, 4.0, importance="full", output_clamp=0.5), (0.5, 0)),
]


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize(("call", "expected"), KL_WORKED)
def test_a_kl_of_one_token(call, expected):
    args, settings = call
    assert kl(*args, **settings) == pytest.approx(expected, rel=1e-13, abs=1e-14)


# ---- what the formulas are for: expectations over all tokens of a vocabulary


@pytest.fixture
def policies():
    """Logits of the policy, and log-probabilities of an old policy and of a reference, over 6 tokens."""
    generator = torch.Generator().manual_seed(0)
    logits, old, ref = torch.randn(3, 6, dtype=D, generator=generator)
    return logits.requires_grad_(), old.log_softmax(0), ref.log_softmax(0)


def gradient_of(loss, logits):
    return torch.autograd.grad(loss, logits, retain_graph=True)[0]


def expected_kl(policies, sampled_from, **settings):
    """The mean of an estimate over the tokens, as often as they are sampled."""
    logits, old, ref = policies
    new = logits.log_softmax(0)
    losses = ppo.kl_token_losses(
        new, ref, torch.ones(6, dtype=torch.bool), old_logprobs=old, weights=sampled_from.detach().exp(),
        settings=KLSettings(**settings),
    )  # fmt: skip
    return losses.sum()


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_weighted_kl_of_another_policys_tokens_is_the_kl_with_its_gradient(policies, estimator):
    logits, old, ref = policies
    new = logits.log_softmax(0)
    exact = (new.exp() * (new - ref)).sum()
    found = expected_kl(policies, old, estimator=estimator, importance="full")
    torch.testing.assert_close(found.detach(), exact.detach())
    torch.testing.assert_close(gradient_of(found, logits), gradient_of(exact, logits))
    # The constant ratio corrects the value alone.
    constant = expected_kl(policies, old, estimator=estimator, importance="constant")
    torch.testing.assert_close(constant.detach(), exact.detach())
    assert not torch.allclose(gradient_of(constant, logits), gradient_of(exact, logits))


@pytest.mark.usefixtures("each_backend")
def test_the_straight_through_gradient_on_policy_is_that_of_the_kl(policies):
    logits, _, ref = policies
    new = logits.log_softmax(0)
    exact = (new.exp() * (new - ref)).sum()
    found = expected_kl(policies, new, estimator="k3", straight_through=True)
    torch.testing.assert_close(found.detach(), exact.detach())
    torch.testing.assert_close(gradient_of(found, logits), gradient_of(exact, logits))


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("surrogate", ["clip", "cispo", "reinforce", "sapo"])
def test_on_policy_every_surrogate_has_the_policy_gradient(policies, surrogate):
    logits, _, _ = policies
    new, advantages = logits.log_softmax(0), torch.linspace(-1.0, 2.0, 6, dtype=D)
    settings = PolicySettings(surrogate=surrogate)
    mask, sampled = torch.ones(6, dtype=torch.bool), new.detach().exp()
    exact = gradient_of(-(new.exp() * advantages).sum(), logits)
    for old in (None, new.detach()):
        losses = ppo.policy_token_losses(new, old, advantages, mask, weights=sampled, settings=settings)
        torch.testing.assert_close(gradient_of(losses.sum(), logits), exact)


# ---- sequences


SEQUENCES = torch.arange(5) < torch.tensor([[5], [2], [0], [3]])


def sequences():
    generator = torch.Generator().manual_seed(1)
    old, step = torch.randn(2, 4, 5, dtype=D, generator=generator)
    garbage = torch.where(SEQUENCES, 0.0, math.nan)
    return (old + 0.1 * step + garbage).requires_grad_(), old + garbage, torch.tensor([1.0, -2.0, 5.0, 0.5], dtype=D)


@pytest.mark.usefixtures("each_backend")
def test_ratios_of_sequences_have_the_gradient_of_the_objective_of_sequences():
    # GSPO, its equation 5 without the clip: the mean over sequences of A exp(mean of the log ratio).
    new, old, advantages = sequences()
    settings = PolicySettings(ratio="sequence", clip_low=1.0, clip_high=math.inf)
    mean = aggregation.token_weights(SEQUENCES, "sequence_mean_of_token_means")._asdict()
    loss = ppo.clipped_policy_loss(new, old, advantages, SEQUENCES, settings=settings, **mean).loss
    objective = 0.0
    for row in (0, 1, 3):
        counted = SEQUENCES[row]
        objective = objective - advantages[row] * (new[row][counted] - old[row][counted]).mean().exp() / 3
    torch.testing.assert_close(loss.detach(), objective.detach())
    expected = torch.autograd.grad(objective, new)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, new)[0], torch.where(SEQUENCES, expected, 0.0))


@pytest.mark.usefixtures("each_backend")
def test_ratios_of_packed_sequences_are_those_of_rows():
    new, old, advantages = sequences()
    settings = PolicySettings(ratio="sequence")
    rows = ppo.policy_token_losses(new, old, advantages, SEQUENCES, settings=settings)
    cu_seqlens = torch.tensor([0, 5, 10, 15, 20], dtype=torch.int32)
    flat, mask = new.detach().flatten().requires_grad_(), SEQUENCES.flatten()
    log_ratios = aggregation.sequence_log_ratios(flat, old.flatten(), mask, cu_seqlens=cu_seqlens)
    of_tokens = advantages.repeat_interleave(5)
    packed = ppo.policy_token_losses(flat, flat.detach() - log_ratios, of_tokens, mask)
    torch.testing.assert_close(packed.view(4, 5), rows)
    packed.sum().backward()
    rows.sum().backward()
    torch.testing.assert_close(flat.grad.view(4, 5), new.grad)


def test_aggregations_are_the_means_that_they_are_named_after():
    losses = torch.randn(4, 5, dtype=D, generator=torch.Generator().manual_seed(2))
    rows = [losses[row][SEQUENCES[row]] for row in (0, 1, 3)]
    expected = {
        "token_mean": torch.cat(rows).mean(),
        "sequence_mean_of_token_means": torch.stack([x.mean() for x in rows]).mean(),
        "sequence_mean_of_token_sums": torch.stack([x.sum() for x in rows]).mean(),
        "constant": torch.stack([x.sum() for x in rows]).mean() / 5,
    }
    assert expected.keys() == aggregation.AGGREGATIONS.keys()
    packed = {"cu_seqlens": torch.tensor([0, 5, 10, 15, 20]), "length": 5}
    for name, value in expected.items():
        for mask, options in ((SEQUENCES, {}), (SEQUENCES.flatten(), packed)):
            weights, count = aggregation.token_weights(mask, name, **options)
            counted = losses.view(mask.shape)[mask]
            total = counted.sum() if weights is None else (weights[mask].double() * counted).sum()
            torch.testing.assert_close(total / count, value, rtol=1e-6, atol=1e-7)
    # Sequences of other micro-batches, and a longest response, may be counted too.
    assert aggregation.token_weights(SEQUENCES, "constant", num_sequences=7, length=100).num_tokens == 700


# ---- weights, parts and clamps together


@pytest.mark.usefixtures("each_backend")
def test_a_weight_of_zero_leaves_out_a_token_whose_loss_is_infinite():
    new = torch.tensor([800.0, 0.1], dtype=D, requires_grad=True)
    inputs = (new, torch.zeros(2, dtype=D), torch.tensor([-2.0, -3.0], dtype=D), torch.ones(2, dtype=torch.bool))
    weights = torch.tensor([0.0, 0.5], dtype=D)
    loss = ppo.clipped_policy_loss(*inputs, weights=weights).loss
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.5 * 3 * math.exp(0.1) / 2, rel=1e-14)
    assert new.grad.tolist() == pytest.approx([0, 0.5 * 3 * math.exp(0.1) / 2], rel=1e-14)


@pytest.mark.usefixtures("each_backend")
def test_the_whole_is_its_parts_and_nothing_is_lost_between_kernels():
    generator = torch.Generator().manual_seed(3)
    draw = [torch.randn(7, 9, dtype=D, generator=generator) for _ in range(7)]
    mask = torch.rand(7, 9, generator=generator) < 0.7
    weights = torch.rand(7, 9, dtype=D, generator=generator)
    new, old, advantages, values, old_values, returns, ref = draw
    settings = PPOSettings(
        policy=PolicySettings(dual_clip=1.5), vf_coef=0.7, kl=KLSettings(estimator="k2", coef=0.3, input_clamp=1.0)
    )
    whole = ppo.ppo_loss(
        new, old, advantages, values, old_values, returns, mask, ref_logprobs=ref, weights=weights, num_tokens=11,
        settings=settings,
    )  # fmt: skip
    of_policy = ppo.policy_token_losses(new, old, advantages, mask, weights=weights, settings=settings.policy).sum()
    of_value = ppo.value_token_losses(values, old_values, returns, mask, weights=weights).sum()
    of_kl = ppo.kl_token_losses(new, ref, mask, weights=weights, settings=settings.kl).sum()
    torch.testing.assert_close(whole.policy_loss, of_policy / 11)
    torch.testing.assert_close(whole.value_loss, of_value / 11)
    torch.testing.assert_close(whole.loss, (of_policy + 0.7 * of_value + 0.3 * of_kl) / 11)
    actor = ppo.ppo_loss(new, old, advantages, None, None, None, mask, weights=weights, num_tokens=11)
    alone = ppo.clipped_policy_loss(new, old, advantages, mask, weights=weights, num_tokens=11)
    assert torch.equal(actor.loss, alone.loss)
    assert float(actor.value_loss) == 0
    # Weights of 1 are none, to the last digit or two: another kernel makes the sums.
    plain = ppo.ppo_loss(new, old, advantages, values, old_values, returns, mask)
    ones = ppo.ppo_loss(new, old, advantages, values, old_values, returns, mask, weights=torch.ones_like(new))
    torch.testing.assert_close(ones.loss, plain.loss, rtol=1e-15, atol=0)
    assert {name: float(x) for name, x in ones.metrics.items()} == {name: float(x) for name, x in plain.metrics.items()}


def test_the_tables_have_a_formula_for_each_name():
    assert tuple(ppo_terms.SURROGATE_LOSSES) == ppo_settings.SURROGATES
    assert len(ppo_settings.flat()) == len(ppo_settings.Flat._fields)
