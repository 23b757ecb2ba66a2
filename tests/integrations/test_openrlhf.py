"""OpenRLHF's own functions with ours in their place."""

import importlib
import json
import subprocess
import sys

import pytest
import torch

from benchmarks.end_to_end.host_runs import record
from instructrl.integrations import openrlhf as adapter

for _package in ("openrlhf", "deepspeed", "ray", "flash_attn", "vllm"):
    pytest.importorskip(_package, reason=f"{_package} is not installed")

PLACES = [
    ("openrlhf.models.actor", "log_probs_from_logits"),
    ("openrlhf.models.actor", "compute_entropy"),
    ("openrlhf.models.utils", "compute_approx_kl"),
    ("openrlhf.trainer.ppo_utils.experience_maker", "compute_approx_kl"),
    ("openrlhf.trainer.ray.ppo_actor", "compute_approx_kl"),
    ("openrlhf.trainer.ray.ppo_actor", "PolicyLoss.forward"),
    ("openrlhf.trainer.ray.ppo_critic", "ValueLoss.forward"),
    ("openrlhf.trainer.rm_trainer", "LogExpLoss.forward"),
    ("openrlhf.trainer.ppo_utils.experience_maker", "RemoteExperienceMaker.get_advantages_and_returns"),
    ("openrlhf.trainer.ppo_utils.experience_maker", "RemoteExperienceMaker.get_cumulative_returns"),
]


def at(module, path):
    found = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    return found


@pytest.fixture
def installed():
    report = adapter.install(strict=True)
    yield report
    adapter.uninstall()


def test_all_of_it_is_replaced_where_it_is_used_and_put_back():
    before = [at(*place) for place in PLACES]
    report = adapter.install(strict=True)
    assert len(report.rows) == len(adapter.ADAPTER.replacements)
    assert {at(*place).__module__ for place in PLACES} == {adapter.__name__}
    adapter.uninstall()
    assert [at(*place) for place in PLACES] == before


def policy_losses(**options):
    from openrlhf.models import PolicyLoss

    generator = torch.Generator().manual_seed(0)
    new, old, engine, gains = (torch.randn(3, 5, generator=generator) for _ in range(4))
    return PolicyLoss(**options)(new, old, gains, torch.ones(3, 5, dtype=torch.long), engine)


@pytest.mark.parametrize(
    "options",
    [{"policy_loss_type": "gspo"}, {"is_correction_level": "seq"}, {"is_correction_level": "token"}],
)
def test_what_is_left_to_the_host_is_the_hosts(installed, options):
    ours = policy_losses(**options)
    adapter.uninstall()
    for a, b in zip(ours, policy_losses(**options), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_what_the_host_has_no_number_for(installed):
    """A loss over nothing, numbers that do not count, scores too far apart, forbidden tokens."""
    from openrlhf.models import LogExpLoss, PolicyLoss, ValueLoss
    from openrlhf.models.utils import compute_entropy

    nan, nothing = torch.full((2, 3), torch.nan), torch.zeros(2, 3, dtype=torch.long)
    assert PolicyLoss()(nan, nan, nan, nothing)[0] == 0
    assert ValueLoss(0.2)(nan, nan, nan, nothing) == 0
    assert LogExpLoss()(torch.tensor([-100.0]), torch.tensor([100.0])) == 200.0
    assert compute_entropy(torch.tensor([[0.0, 0.0, -torch.inf]])).item() == pytest.approx(0.6931472)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logits_are_left_as_the_host_leaves_them(installed, temperature):
    from openrlhf.models.utils import log_probs_from_logits

    logits = torch.randn(2, 3, 11, generator=torch.Generator().manual_seed(0))
    mine, ids = logits.clone(), torch.arange(6).view(2, 3)
    found = log_probs_from_logits(mine, ids, temperature)
    torch.testing.assert_close(mine, logits / temperature)
    torch.testing.assert_close(found, (logits / temperature).log_softmax(-1).gather(-1, ids[..., None])[..., 0])


def test_ten_steps_of_its_trainers_are_the_same():
    with_adapter, without = (record.run("openrlhf", "ppo", adapter=on) for on in (True, False))
    assert len(with_adapter["replaced"]) == len(adapter.ADAPTER.replacements)
    assert not without["replaced"]
    assert len(without["losses"]) == 10
    assert max(record.largest_gaps(with_adapter, without).values()) < 1e-5


IN_A_WORKER = """
import json, ray
hook = {"worker_process_setup_hook": "instructrl.integrations.openrlhf.install"}
ray.init(num_cpus=1, include_dashboard=False, runtime_env=hook)

@ray.remote
def modules():
    from openrlhf.models import PolicyLoss
    from openrlhf.trainer.ray import ppo_actor
    return [PolicyLoss.forward.__module__, ppo_actor.compute_approx_kl.__module__]

print("@" + json.dumps(ray.get(modules.remote())))
"""


@pytest.mark.timeout(600)
def test_workers_of_ray_have_it_by_the_setup_hook(tmp_path):
    """A minute or more: a cluster starts, and its worker imports the host."""
    done = subprocess.run([sys.executable, "-c", IN_A_WORKER], capture_output=True, text=True, cwd=tmp_path)
    lines = [line for line in done.stdout.splitlines() if line.startswith("@")]
    assert lines, done.stderr[-2000:]
    assert json.loads(lines[0][1:]) == [adapter.__name__] * 2
