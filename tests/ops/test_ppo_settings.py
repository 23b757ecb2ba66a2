"""The formulas that settings of PPO's losses choose, against numbers worked out here and autograd in float64."""

import math

import pytest
import torch

from instructrl.ops import ppo_terms
from instructrl.ops.ppo_settings import KL_ESTIMATORS, KLEstimator

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
