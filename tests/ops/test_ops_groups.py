"""Advantages within groups: worked numbers, and what must hold for each baseline."""

import pytest
import torch

from instructrl.ops.advantage_settings import GroupSettings
from instructrl.ops.groups import group_advantages

D = torch.float64
SCORES = torch.tensor([1.0, 10.0, 4.0, 2.0, 20.0, 5.0], dtype=D)
GROUPS = torch.tensor([0, 1, 0, 0, 1, 2])
RLOO = GroupSettings(baseline="leave_one_out", scale="none")
DR_GRPO = GroupSettings(scale="none")

pytestmark = pytest.mark.usefixtures("each_backend")


def advantages(settings, scores=SCORES, groups=GROUPS):
    return group_advantages(scores, groups, num_groups=4, settings=settings)


def test_worked_numbers():
    """Group 0 is 1, 4, 2: mean 7/3, deviations -4/3, 5/3, -1/3 with squares of 42/9. Group 1 is 10, 20. Group 2 is
    alone."""
    centred = torch.tensor([-4 / 3, -5.0, 5 / 3, -1 / 3, 5.0, 0.0], dtype=D)
    assert advantages(DR_GRPO).tolist() == pytest.approx(centred.tolist(), rel=1e-15)
    others = [1 - 3.0, 10 - 20.0, 4 - 1.5, 2 - 2.5, 20 - 10.0, 0.0]
    assert advantages(RLOO).tolist() == pytest.approx(others, rel=1e-15)
    sample = torch.tensor([(42 / 18) ** 0.5, 50**0.5, (42 / 18) ** 0.5, (42 / 18) ** 0.5, 50**0.5, 0.0], dtype=D)
    assert advantages(GroupSettings()).tolist() == pytest.approx((centred / (sample + 1e-4)).tolist(), rel=1e-15)
    population = torch.tensor([(42 / 27) ** 0.5, 5.0, (42 / 27) ** 0.5, (42 / 27) ** 0.5, 5.0, 0.0], dtype=D)
    settings = GroupSettings(ddof=0, epsilon=1e-6)
    assert advantages(settings).tolist() == pytest.approx((centred / (population + 1e-6)).tolist(), rel=1e-14)
    alone = GroupSettings(baseline="none", scale="none")
    assert torch.equal(advantages(alone), SCORES)


@pytest.mark.parametrize("settings", [GroupSettings(), RLOO, DR_GRPO], ids=["GRPO", "RLOO", "Dr. GRPO"])
def test_a_constant_changes_nothing_and_groups_add_up_to_nothing(settings):
    found = advantages(settings)
    torch.testing.assert_close(advantages(settings, SCORES + 4.0), found)
    for group in range(3):
        assert float(found[group == GROUPS].sum()) == pytest.approx(0.0, abs=1e-12)


def test_the_order_of_responses_and_the_ids_do_not_matter():
    order = torch.tensor([5, 3, 1, 0, 4, 2])
    found = advantages(RLOO, SCORES[order], (3 - GROUPS[order]).to(torch.int32))
    torch.testing.assert_close(found, advantages(RLOO)[order])


def test_a_score_that_is_no_number_stays_in_its_group():
    scores = torch.where(torch.arange(6) == 0, torch.nan, SCORES)
    assert advantages(GroupSettings(), scores).isnan().tolist() == [True, False, True, True, False, False]
