"""What training code does to operations: masks of the lowest float, rollouts of inference mode, loss scales, edits."""

import math

import pytest
import torch

from instructrl import ops
from instructrl.ops import advantages, candidates, logprobs, ppo, ranking, sampling, statistics
from instructrl.ops.advantage_settings import RewardSettings
from instructrl.ops.ppo_settings import KLSettings, PolicySettings, PPOSettings, ValueSettings

WITH_KL = PPOSettings(kl=KLSettings(coef=0.1))

pytestmark = pytest.mark.usefixtures("each_backend")


def leaf(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


@pytest.mark.parametrize("temperature", [0.02, 0.7, 1.0, 1e-6, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_lowest_float_excludes_a_class_as_minus_infinity_does(dtype, temperature):
    forbidden = torch.ones(3, 5000, dtype=torch.bool)
    forbidden[:, 3000:3040] = False
    tokens, uniforms, results = torch.tensor([3000, 3010, 3039]), torch.tensor([0.1, 0.5, 0.9]), []
    for low in (torch.finfo(dtype).min, -math.inf):
        logits = leaf(3, 5000, dtype=dtype).detach().masked_fill(forbidden, low).requires_grad_()
        logprob, entropy = logprobs.token_logprobs_and_entropy(logits, tokens, temperature=temperature)
        (gradient,) = torch.autograd.grad((logprob + entropy).sum(), logits)
        results.append(
            (logprob, entropy, gradient, sampling.sample_tokens(logits.detach(), uniforms, temperature=temperature))
        )
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)
        assert bool(found.isfinite().all())


def test_a_mean_over_no_pairs_has_no_gradient():
    scores, preferred = leaf(2, 3), torch.zeros(2, 3, 3, dtype=torch.bool)
    preferred[0, 0, 1] = True
    result = ranking.pairwise_ranking_loss(scores, preferred)
    torch.where(result.num_pairs > 0, result.loss_sum / result.num_pairs, 0.0).sum().backward()
    assert bool((scores.grad[0, :2] != 0).all())
    assert torch.equal(scores.grad[1], torch.zeros(3))


def test_a_loss_scale_saves_the_gradients_of_float16_as_those_of_float64():
    tokens, constant, mask = torch.arange(64), torch.zeros(64), torch.ones(64, dtype=torch.bool)
    shapes = ((64, 32), (500, 32), (64,))
    inputs = [leaf(*shape, dtype=torch.float16, seed=seed) for seed, shape in enumerate(shapes)]
    inputs[1].data.mul_(0.1)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    for hidden, weight, values in (inputs, wide):
        others = (constant - 6.2, constant + 1.0, values, constant, constant + 1.0, mask)
        result = ppo.linear_ppo_loss(hidden, weight, tokens, *others, num_tokens=10**9)
        (2.0**24 * result.loss).backward()
    for found, expected in zip(inputs, wide, strict=True):
        representable = expected.grad.abs() > torch.finfo(torch.float16).smallest_normal
        assert float(representable.float().mean()) > 0.05
        assert bool((found.grad[representable] != 0).all())


@pytest.mark.parametrize(
    "overlapping", [lambda x: x.expand(3, 9), lambda x: x[0].unfold(0, 3, 2)], ids=["expanded", "windows"]
)
def test_logits_that_share_memory_are_not_written_over(overlapping):
    logits = overlapping(leaf(1, 9) * 1.0)
    tokens = torch.zeros(logits.shape[0], dtype=torch.int64)
    with pytest.raises(ValueError, match="share no memory"):
        logprobs.token_logprobs(logits, tokens, inplace_backward=True)


def test_logits_of_any_order_in_memory_are_written_over():
    logits = leaf(1, 5, 17)
    strange = logits.transpose(0, -1).contiguous().transpose(0, -1) * 1.0
    (found,) = torch.autograd.grad(
        logprobs.token_logprobs(strange, torch.arange(5).view(1, 5), inplace_backward=True).sum(), logits
    )
    (expected,) = torch.autograd.grad(logprobs.token_logprobs(logits, torch.arange(5).view(1, 5)).sum(), logits)
    torch.testing.assert_close(found, expected)


def test_tokens_of_inference_mode_can_be_trained_on():
    with torch.inference_mode():
        tokens = torch.arange(4)
    logits, hidden, weight = leaf(4, 9), leaf(4, 3), leaf(9, 3)
    logprobs.token_logprobs(logits, tokens).sum().backward()
    logprobs.linear_token_logprobs(hidden, weight, tokens).sum().backward()
    assert bool(logits.grad.isfinite().all())
    assert bool(weight.grad.isfinite().all())


def test_a_head_can_be_trained_on_what_inference_mode_made():
    with torch.inference_mode():
        hidden, tokens, mask, allowed = (
            leaf(4, 3).detach() * 1,
            torch.arange(4),
            torch.arange(4) > 0,
            torch.arange(9) < 7,
        )
        preferred = torch.arange(9).view(1, 3, 3) % 4 == 1
    logits, weight, scores = leaf(4, 9), leaf(9, 3), leaf(1, 3)
    logprobs.token_logprobs(logits, tokens, mask=mask, allowed=allowed).sum().backward()
    candidates.candidate_logprobs(logits, tokens.unsqueeze(1), mask=mask).sum().backward()
    ranking.pairwise_ranking_loss(scores, preferred).loss_sum.sum().backward()
    logprobs.linear_token_logprobs(hidden, weight, tokens, mask=mask).sum().backward()
    statistics.linear_token_statistics(hidden, weight, tokens, mask=mask).entropy.sum().backward()
    assert all(bool(x.grad.isfinite().all()) for x in (logits, weight, scores))


def test_parts_of_a_loss_may_be_changed_in_place():
    new, value, vector = leaf(6), leaf(6, seed=1), torch.zeros(6)
    result = ppo.ppo_loss(new, vector, vector + 1, value, vector, vector, vector == 0)
    (expected,) = torch.autograd.grad(result.loss, new, retain_graph=True)
    result.policy_loss.mul_(2.0)
    result.value_loss.zero_()
    assert torch.equal(torch.autograd.grad(result.loss, new)[0], expected)


def test_a_reference_in_float64_does_not_choose_the_dtype():
    new, vector = leaf(8), torch.zeros(8)
    arguments = (new, vector, vector + 1, new, vector, vector, vector == 0)
    assert ppo.ppo_loss(*arguments, ref_logprobs=vector.double() - 0.5, settings=WITH_KL).loss.dtype == torch.float32


def test_a_more_precise_reference_is_not_rounded():
    new, vector = leaf(8), torch.zeros(8)
    arguments = (new, vector, vector + 1, new, vector, vector, vector == 0)
    half = [x.to(torch.bfloat16) if x.is_floating_point() else x for x in arguments]
    precise = vector - 0.12345
    found = ppo.ppo_loss(*half, ref_logprobs=precise, settings=WITH_KL).metrics["ref_kl_sum"]
    wide = [x.float() if x.is_floating_point() else x for x in half]
    assert torch.equal(found, ppo.ppo_loss(*wide, ref_logprobs=precise, settings=WITH_KL).metrics["ref_kl_sum"])


def test_a_weight_of_0_leaves_a_token_out_whatever_its_loss_is():
    new, value = torch.tensor([-1.0, -math.inf]).requires_grad_(), torch.tensor([0.5, math.inf]).requires_grad_()
    kl = KLSettings(estimator="k2", coef=0.5)
    settings = PPOSettings(policy=PolicySettings(surrogate="reinforce"), vf_coef=0.1, kl=kl)
    constants = {"ref_logprobs": torch.tensor([-1.2, -1.0]), "weights": torch.tensor([1.0, 0.0])}
    zero, one = torch.zeros(2), torch.ones(2)
    found = ppo.ppo_loss(new, None, one, value, zero, zero, one == 1, **constants, settings=settings)
    # The first token's, over two: policy 1, value 0.1 * 0.5 * 0.5^2, KL 0.5 * 0.5 * 0.2^2.
    torch.testing.assert_close(found.loss, torch.tensor((1.0 + 0.0125 + 0.01) / 2))
    gradients = torch.autograd.grad(found.loss, (new, value))
    torch.testing.assert_close(gradients[0], torch.tensor([(-1.0 + 0.1) / 2, 0.0]))
    torch.testing.assert_close(gradients[1], torch.tensor([0.1 * 0.5 / 2, 0.0]))


def test_infinity_stays_in_its_sequence():
    rewards = torch.tensor([1.0, 2.0, 3.0, math.inf])
    found = advantages.generalized_advantages(
        rewards, torch.zeros(4), torch.ones(4, dtype=torch.bool), cu_seqlens=torch.tensor([0, 2, 4])
    )
    assert found[0].isfinite().tolist() == [True, True, False, False]


@pytest.mark.parametrize("loss", [ppo.ppo_loss, ppo.linear_ppo_loss])
def test_settings_may_be_symbols(loss):
    first = (leaf(6),) if loss is ppo.ppo_loss else (leaf(6, 4), leaf(9, 4), torch.arange(6))
    arguments = (*first, *(leaf(6, seed=seed).detach() for seed in range(5)), torch.ones(6, dtype=torch.bool))

    def step(vf_coef):
        settings = PPOSettings(policy=PolicySettings(), value=ValueSettings(), vf_coef=vf_coef, kl=KLSettings())
        return loss(*arguments, settings=settings).loss

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for vf_coef in (0.1, 0.3):
        torch.testing.assert_close(compiled(vf_coef), step(vf_coef))


def test_settings_may_be_made_and_values_be_the_old_ones_in_a_compiled_step():
    new, value, vector, mask = leaf(6), leaf(6, seed=1), leaf(6, seed=2).detach(), torch.ones(6, dtype=torch.bool)

    def step(new, value):
        rewards = RewardSettings(score_clip=2.0)
        rows = (vector[None], vector[None], vector[None], vector[:1], mask[None])
        made = advantages.ppo_advantages(*rows, kl_coef=0.1, settings=rewards)
        settings = PPOSettings(policy=PolicySettings(clip_high=0.3, dual_clip=3.0))
        result = ppo.ppo_loss(new, vector, made.advantages[0], value, value, vector, mask, settings=settings)
        return result.loss

    found = torch.compile(step, fullgraph=True, backend="aot_eager")(new, value)
    torch.testing.assert_close(found, step(new, value))
    for ours, theirs in zip(*(torch.autograd.grad(x, (new, value)) for x in (found, step(new, value))), strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.compiler.reset()


def test_backend_is_the_one_that_is_forced(each_backend):
    assert ops.dispatch._forced == each_backend
