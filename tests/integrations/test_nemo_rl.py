"""NeMo-RL's own functions and loss functions with ours in their place."""

import importlib.util
import os
import sys

import pytest
import torch

from benchmarks.end_to_end.host_runs import record
from instructrl.integrations import nemo_rl as adapter
from instructrl.integrations.nemo_rl import losses
from instructrl.integrations.selfcheck import Sizes, drawn

# It asks git for the commit of the folder that it is in.
os.environ.setdefault("NO_VCS_VERSION", "1")
host_only = pytest.mark.skipif(importlib.util.find_spec("nemo_rl") is None, reason="no checkout of NeMo-RL here")


@pytest.fixture
def installed():
    report = adapter.install(strict=True)
    yield report
    adapter.uninstall()


@pytest.mark.parametrize(
    ("distribution", "found"), [("", "0.7.1rc0"), ("0.0.0", "0.7.1rc0"), ("0.8.0+1a2b3c4", "0.8.0")]
)
def test_the_version_of_a_checkout_and_of_an_installation(tmp_path, monkeypatch, distribution, found):
    package = tmp_path / "nemo_rl"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "package_info.py").write_text("MAJOR = 0\nMINOR = 7\nPATCH = 1\nPRE_RELEASE = 'rc0'\nX = MAJOR\n")
    if distribution:
        information = tmp_path / f"nemo_rl-{distribution}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: nemo-rl\nVersion: {distribution}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "nemo_rl", raising=False)
    assert adapter.ADAPTER.version() == found


def test_the_name_in_the_registry_is_no_host(tmp_path, monkeypatch):
    information = tmp_path / "nemo_rl-0.0.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: nemo-rl\nVersion: 0.0.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert adapter.ADAPTER.version() == ""


@host_only
def test_advantages_are_replaced_and_losses_are_not_patched():
    from nemo_rl.algorithms import advantage_estimator
    from nemo_rl.algorithms.loss import ClippedPGLossConfig, ClippedPGLossFn, NLLLossFn

    estimator = advantage_estimator.GeneralizedAdvantageEstimator
    before = (ClippedPGLossFn.__call__, estimator._compute_gae, advantage_estimator.calculate_kl)
    report = adapter.install(strict=True)
    assert len(report.rows) == len(adapter.ADAPTER.replacements)
    replaced = (estimator._compute_gae, estimator._reward_whiten, advantage_estimator.calculate_kl)
    assert {x.__module__ for x in replaced} == {"instructrl.integrations.nemo_rl.advantages"}
    assert ClippedPGLossFn.__call__ is before[0]
    own, other = ClippedPGLossFn(ClippedPGLossConfig(ratio_clip_c=3.0)), NLLLossFn()
    ours = adapter.with_ours(own)
    assert isinstance(ours, ClippedPGLossFn)
    assert vars(ours) == vars(own)
    assert adapter.with_ours(other) is other
    assert adapter.with_ours(ours) is ours
    adapter.uninstall()
    assert (ClippedPGLossFn.__call__, estimator._compute_gae, advantage_estimator.calculate_kl) == before
    assert adapter.with_ours(own) is own


def policy_loss(**options):
    from nemo_rl.algorithms.loss import ClippedPGLossConfig, ClippedPGLossFn

    return ClippedPGLossFn(ClippedPGLossConfig(**options))


def arguments():
    """Of a policy loss: log-probabilities, a batch, counts."""
    return drawn(losses.policies, Sizes())[0].args[1:]


@host_only
def test_a_loss_says_what_the_hosts_says_under_the_same_names(installed):
    own = policy_loss()
    expected, found = own(*arguments())[1], adapter.with_ours(own)(*arguments())[1]
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


CORRECTED = {"use_importance_sampling_correction": True, "truncated_importance_sampling_ratio": 2.0}
LEFT = [
    {"sequence_level_importance_ratios": True, "token_level_loss": False},
    {"use_on_policy_kl_approximation": True},
    {"kl_input_clamp_value": 0.1},
    {"truncated_importance_sampling_type": "seq-mask-tis", "truncated_importance_sampling_ratio_min": 0.5, **CORRECTED},
    {"positive_example_nll_weight": 0.1},
]


@host_only
@pytest.mark.parametrize("options", LEFT, ids=lambda options: next(iter(options)))
def test_what_is_left_to_the_host_is_the_hosts(installed, options):
    own = policy_loss(**options)
    (loss, metrics), (ours, found) = own(*arguments()), adapter.with_ours(own)(*arguments())
    assert torch.equal(loss, ours)
    assert metrics == found


@host_only
def test_what_does_not_count_is_not_read(installed):
    new, batch, *counts = arguments()
    batch["token_mask"] = torch.zeros_like(batch["token_mask"])
    for name in ("prev_logprobs", "generation_logprobs", "advantages", "reference_policy_logprobs"):
        batch[name] = torch.full_like(batch[name], torch.nan)
    loss, metrics = adapter.with_ours(policy_loss())(new, batch, counts[0], torch.tensor(0.0))
    assert loss == 0.0
    assert metrics["probs_ratio_min"] == float("inf")


@host_only
def test_a_loss_is_sent_to_workers_with_what_it_needs(installed):
    cloudpickle = pytest.importorskip("ray.cloudpickle")
    own = policy_loss()
    sent = cloudpickle.dumps(adapter.with_ours(own))
    adapter.uninstall()
    received = cloudpickle.loads(sent)
    assert type(received).__call__.__module__ == losses.__name__
    assert float(received(*arguments())[0]) == pytest.approx(float(own(*arguments())[0]), rel=1e-5)


@host_only
def test_ten_steps_of_its_training_are_the_same():
    with_adapter, without = (record.run("nemo_rl", "ppo", adapter=on) for on in (True, False))
    assert len(with_adapter["replaced"]) == len(adapter.ADAPTER.replacements)
    assert not without["replaced"]
    assert len(without["losses"]) == 10
    assert max(record.largest_gaps(with_adapter, without).values()) < 1e-5
