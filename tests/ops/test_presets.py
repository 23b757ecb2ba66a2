"""The conventions of other trainers give the numbers that those trainers give.

The fixture and its numbers are those of `test_ops_golden`: made by the trainers' own functions where they have one, to
six decimals. Coefficients, discount and trace decay are the fixture's; how they are used is the preset's.
"""

from dataclasses import replace
from pathlib import Path

import presets_page
import pytest
import torch
from test_ops_golden import MASK, NEW, NEW_VALUES, OLD, REF, SCORES, VALUES, assert_to_six_decimals

from instructrl.ops import advantages, aggregation, ppo
from instructrl.ops.ppo_settings import ValueSettings
from instructrl.ops.presets import PRESETS

BEHIND = torch.tensor([[True, True, True, True, False], [True] * 5])
SECOND = [-0.459203, -0.272845, -1.0451, -0.658, -0.84]
LAST = [[0.643825, 0.5935, 0.93, 0, 0], SECOND]
ONE_BEHIND = [[0.621263, 0.56975, 0.905, 0, 0], SECOND]
SAMPLE = [1.035621, 0.969, 1.414462, -0.424579, -0.177877, -1.200196, -0.687749, -0.928682]
WHITENED = {
    "instructgpt": SAMPLE,
    "verl": SAMPLE,
    "nemo_rl": SAMPLE,
    "slime": SAMPLE,
    "openrlhf": [1.107125, 1.035904, 1.512124, -0.453894, -0.190158, -1.283063, -0.735234, -0.992803],
    # Its function was given advantages of six decimals, which made the fourth -0.424574.
    "areal": [1.035607, 0.968987, 1.414443, -0.424573, -0.177874, -1.20018, -0.68774, -0.92867],
    "torchtune": [0.886123, 0.816861, 1.26763, -0.566646, -0.316073, -1.35443, -0.833944, -1.078657],
}
WITH_CRITIC = [name for name in PRESETS if name != "liger"]


def estimate(name):
    preset = PRESETS[name]
    return advantages.ppo_advantages(
        OLD, REF, VALUES, SCORES, MASK, kl_coef=0.1, gamma=1.0, lam=0.95, settings=preset.rewards
    )


@pytest.mark.parametrize("name", WITH_CRITIC)
def test_rewards_advantages_and_returns(name):
    found = estimate(name)
    second = [0, 0.02, -0.02, -0.01, -0.59]
    behind = name in ("trl", "torchtune", "deepspeed_chat")
    if name == "nemo_rl":
        # Its estimate of the KL in rewards is k3, which is not the fixture's.
        d = REF - OLD
        k3 = torch.where(MASK, -0.1 * (d.exp() - 1 - d), 0.0)
        k3[0, 2] += 0.8
        k3[1, 4] -= 0.6
        torch.testing.assert_close(found.rewards, k3)
        return
    assert_to_six_decimals(found.advantages, ONE_BEHIND if behind else LAST)
    if behind:
        assert_to_six_decimals(found.rewards, [[-0.02, 0.01, 0.03, 0.8, 0], second])
        assert_to_six_decimals(
            found.returns[BEHIND], [0.721263, 0.76975, 0.805, 0.8, -0.459203, -0.472845, -0.5451, -0.558, -0.59]
        )
    else:
        assert_to_six_decimals(found.rewards, [[-0.02, 0.01, 0.83, 0, 0], second])


@pytest.mark.parametrize("name", WHITENED)
def test_whitened(name):
    rewards = replace(PRESETS[name].rewards, kl=PRESETS["instructgpt"].rewards.kl)
    found = advantages.ppo_advantages(OLD, REF, VALUES, SCORES, MASK, kl_coef=0.1, lam=0.95, settings=rewards)
    settings = PRESETS[name].whitening
    assert settings is not None
    assert_to_six_decimals(advantages.masked_whiten(found.advantages, MASK, settings=settings)[MASK], WHITENED[name])


def test_whitened_by_trl():
    x = torch.tensor(ONE_BEHIND, dtype=torch.float64)[MASK]
    found = advantages.masked_whiten(estimate("trl").advantages, MASK, settings=PRESETS["trl"].whitening)[MASK]
    assert_to_six_decimals(found, ((x - x.mean()) / (x.var(correction=1) + 1e-8).sqrt()).tolist())


@pytest.mark.parametrize("name", PRESETS)
def test_losses(name):
    """At the fixture's clip ranges, by the aggregation of the preset; ratios there reach no other bound."""
    preset = PRESETS[name]
    plain = advantages.ppo_advantages(OLD, REF, VALUES, SCORES, MASK, kl_coef=0.1, lam=0.95)
    whitened = advantages.masked_whiten(plain.advantages, MASK)
    weights, num_tokens = aggregation.token_weights(MASK, preset.aggregation)
    policy = replace(preset.losses.policy, clip_low=0.2, clip_high=0.2)
    loss = ppo.clipped_policy_loss(NEW, OLD, whitened, MASK, weights=weights, num_tokens=num_tokens, settings=policy)
    by_sequence = preset.aggregation != "token_mean"
    assert_to_six_decimals(loss.loss, -0.255296 if by_sequence else -0.022474)
    if name != "liger":
        value = ppo.clipped_value_loss(
            NEW_VALUES, VALUES, plain.returns, MASK, weights=weights, num_tokens=num_tokens, settings=ValueSettings()
        )
        # slime's own function on the fixture, without the half: 0.704289.
        assert_to_six_decimals(
            preset.losses.vf_coef * value.loss, 0.704289 if by_sequence else preset.losses.vf_coef * 0.341015
        )


def test_verl_and_openrlhf_where_the_ratio_explodes():
    """Advantage -1 and a log ratio of 25, one of ten tokens: 1.2 with the dual clip of 3 and 4, else exp(20) / 10."""
    new, old, advantage = torch.zeros(10), torch.zeros(10), torch.ones(10)
    new[0], advantage[0] = 25.0, -1.0
    mask = torch.ones(10, dtype=torch.bool)
    verl = ppo.clipped_policy_loss(new, old, advantage, mask, settings=PRESETS["verl"].losses.policy)
    openrlhf = ppo.clipped_policy_loss(new, old, advantage, mask, settings=PRESETS["openrlhf"].losses.policy)
    assert float(verl.loss) == pytest.approx((3.0 - 9.0) / 10)
    assert float(openrlhf.loss) == pytest.approx((torch.tensor(20.0).exp().item() - 9.0) / 10)


@pytest.mark.parametrize("with_old", [True, False])
def test_the_gradient_of_the_kl_of_nemo_rl_is_the_log_ratio(with_old):
    """Its weight of value 1 turns the gradient of k3, 1 - exp(-d), into d, whoever sampled."""
    settings = replace(PRESETS["nemo_rl"].losses.kl, coef=1.0)
    new = NEW.clone().requires_grad_()
    found = ppo.kl_token_losses(new, REF, MASK, old_logprobs=OLD if with_old else None, settings=settings)
    found.sum().backward()
    d = NEW - REF
    torch.testing.assert_close(found, torch.where(MASK, (-d).exp() - 1 + d, 0.0))
    torch.testing.assert_close(new.grad, torch.where(MASK, d, 0.0))


def test_the_page_says_what_the_presets_are():
    page = Path(presets_page.PAGE).read_text()
    assert presets_page.table() in page, "python tests/ops/presets_page.py writes it"
    assert presets_page.notes() in page
