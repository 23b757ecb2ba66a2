"""Rollout to experience: ratio, KL, scores and advantages against the relations that define them."""

import random
from dataclasses import replace

import pytest
import torch
from tiny import lively_policy, tiny_encoder, tiny_policy, tiny_reward_model, words

from instructrl.models.scoring import ValueFunction
from instructrl.rollout.experience import Estimation, make_experience
from instructrl.rollout.generate import Sampling, sample_rollout
from instructrl.rollout.scoring import rollout_scores
from instructrl.types import Experience

EPS = torch.finfo(torch.float32).eps
BETA = 0.3
# The design's bound where the batch is composed otherwise than in the rollout.
RATIO_BOUND = 1e-5


class Setup:
    """A policy that has moved away from its reference, its rollout and models."""

    def __init__(self) -> None:
        encoder = tiny_encoder()
        self.reference = tiny_policy(encoder, seed=0)
        self.policy = lively_policy(encoder, seed=1)
        self.reward_model = tiny_reward_model(self.reference, seed=2)
        self.reward_model.bias.fill_(0.75)
        self.value_function = ValueFunction.from_reward_model(self.reward_model).eval()
        rng = random.Random(5)
        prompts = [words(rng) for _ in range(21)]
        self.rollout = sample_rollout(self.policy, encoder, prompts, Sampling(seed=4, max_response_tokens=8))
        self.mask = self.rollout.sequences.response_mask

    def experience(self, *, kl_coef: float = BETA, reference=None, **changes):
        return make_experience(
            self.rollout,
            policy=self.policy,
            reference=self.reference if reference is None else reference,
            value_function=self.value_function,
            scores=rollout_scores(self.reward_model, self.rollout, tiny_encoder().end_of_text),
            kl_coef=kl_coef,
            estimation=replace(Estimation(), **changes),
        )


@pytest.fixture(scope="module")
def setup() -> Setup:
    return Setup()


def last_positions(mask: torch.Tensor) -> torch.Tensor:
    return mask.sum(dim=1) - 1


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [3, 128])
def test_the_ratio_to_a_fresh_forward_pass_is_one(setup, batch_size):
    experience, _ = setup.experience(batch_size=batch_size)
    ratio = (setup.policy(setup.rollout.sequences) - experience.logprobs).exp()
    assert float((ratio - 1).abs().max()) <= (0 if batch_size == 128 else RATIO_BOUND)


def test_kl_is_zero_where_policy_and_reference_agree(setup):
    experience, statistics = setup.experience(reference=setup.policy)
    assert statistics.kl == 0
    assert torch.equal(experience.logprobs, experience.ref_logprobs)
    assert abs(statistics.reward - float(experience.scores.mean())) <= EPS * abs(statistics.reward)


def test_kl_rewards_add_up_and_the_score_comes_last(setup):
    """Undiscounted with lambda 1, a return is the sum of the rewards that are still to come."""
    experience, _ = setup.experience(lam=1.0)
    kl = (experience.logprobs - experience.ref_logprobs).double()
    assert float(kl.abs().sum(dim=1).min()) > 1
    expected = experience.scores.double() - BETA * kl.sum(dim=1)
    # A handful of additions of numbers up to the largest of these.
    bound = 50 * EPS * float(expected.abs().max())
    assert float((experience.returns[:, 0] - expected).abs().max()) <= bound
    rewards = experience.returns - torch.cat([experience.returns[:, 1:], torch.zeros(len(kl), 1)], dim=1)
    rows, last = torch.arange(len(kl)), last_positions(setup.mask)
    assert float((rewards[rows, last] - (experience.scores - BETA * kl[rows, last])).abs().max()) <= bound
    before_last = torch.arange(setup.mask.shape[1]) < last[:, None]
    assert float((rewards + BETA * kl)[before_last].abs().max()) <= bound


def test_without_a_penalty_every_return_is_the_score(setup):
    experience, statistics = setup.experience(kl_coef=0.0, lam=1.0)
    expected = experience.scores[:, None].expand_as(experience.returns).masked_fill(~setup.mask, 0.0)
    assert float((experience.returns - expected).abs().max()) <= 50 * EPS * float(expected.abs().max())
    assert abs(statistics.reward - float(experience.scores.mean())) <= EPS * abs(statistics.reward)


def test_advantages_are_the_whitened_return_minus_value(setup):
    experience, _ = setup.experience()
    raw = (experience.returns - experience.values)[setup.mask].double()
    found = experience.advantages[setup.mask].double()
    expected = (raw - raw.mean()) / raw.std()
    # Returns and values of some nats lose a few roundings when they are subtracted again.
    bound = 50 * EPS * (1 + float(experience.returns.abs().max()) / float(raw.std()))
    assert float((found - expected).abs().max()) <= bound
    count = found.numel()
    assert abs(float(found.mean())) <= bound
    assert abs(float(found.square().sum()) / (count - 1) - 1) <= 4 * bound


def assert_same_but_for_rounding(found, expected):
    """Rows are computed in other batches, whose matrix products round differently."""
    assert float((found - expected).abs().max()) <= 50 * EPS * float(expected.abs().max())


@torch.no_grad()
def test_values_are_those_of_the_value_function(setup):
    experience, _ = setup.experience()
    assert_same_but_for_rounding(experience.values, setup.value_function(setup.rollout.sequences))
    assert float(experience.values.std()) > 0


def test_nothing_counts_where_the_mask_is_false(setup):
    experience, _ = setup.experience()
    for name in ("logprobs", "ref_logprobs", "values", "advantages", "returns"):
        assert float(getattr(experience, name)[~setup.mask].abs().sum()) == 0, name


def test_a_cut_response_keeps_its_score_unless_a_rule_is_given(setup):
    finished = setup.rollout.finished
    assert 0 < int(finished.sum()) < len(finished)
    kept, _ = setup.experience()
    experience, statistics = setup.experience(missing_eos_score=-1.0)
    assert torch.equal(experience.scores[finished], kept.scores[finished])
    assert bool((experience.scores[~finished] == -1).all())
    with torch.no_grad():
        assert_same_but_for_rounding(kept.scores, setup.reward_model(setup.rollout.sequences))
    # The reported score is the reward model's, the reported reward is what is maximised.
    assert abs(statistics.score - float(kept.scores.mean())) <= EPS * abs(statistics.score)


def test_statistics_are_means_over_episodes(setup):
    experience, statistics = setup.experience()
    kl = (experience.logprobs - experience.ref_logprobs).double().sum(dim=1)
    bound = 50 * EPS * float(kl.abs().max())
    assert abs(statistics.kl - float(kl.mean())) <= bound
    assert abs(statistics.reward - float((experience.scores - BETA * kl).mean())) <= bound
    assert statistics.finished == float(setup.rollout.finished.float().mean())
    assert statistics.response_tokens == float(setup.mask.sum(dim=1).float().mean())


@torch.no_grad()
def test_temperature_applies_to_both_policies(setup):
    experience, _ = setup.experience(temperature=0.7)
    sequences = setup.rollout.sequences
    assert torch.equal(experience.logprobs, setup.policy(sequences, 0.7))
    assert torch.equal(experience.ref_logprobs, setup.reference(sequences, 0.7))


def test_experience_carries_no_gradient(setup):
    experience, _ = setup.experience()
    assert isinstance(experience, Experience)
    tensors = [getattr(experience, name) for name in ("scores", "logprobs", "values", "advantages", "returns")]
    assert not any(tensor.requires_grad for tensor in tensors)
