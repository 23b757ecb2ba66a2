"""verl's own functions with ours in their place, and what its processes are told by."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("verl", reason="verl is not installed")
from instructrl.integrations import verl as adapter

ROOT = Path(__file__).parent.parent.parent
ENTRY_POINT = "[verl.plugins]\ninstructrl = instructrl.integrations.verl_plugin\n"
CUDA_ALONE = "verl.utils.kernel.linear_cross_entropy:linear_cross_entropy"


@pytest.fixture
def installed():
    report = adapter.install(strict=True)
    yield report
    adapter.uninstall()


def test_all_of_it_is_replaced_where_it_is_used_and_put_back(installed):
    core = importlib.import_module("verl.trainer.ppo.core_algos")
    losses = importlib.import_module("verl.workers.utils.losses")
    assert [row.name for row in installed.left_alone] == [CUDA_ALONE]
    assert losses.compute_value_loss is core.compute_value_loss
    assert losses.compute_value_loss.__module__ == "instructrl.integrations.verl.losses"
    assert core.get_adv_estimator_fn("rloo").__module__ == "instructrl.integrations.verl.advantages"
    assert core.get_policy_loss_fn("instructrl_gspo").__module__ == "instructrl.integrations.verl.losses"
    assert core.get_policy_loss_fn("vanilla") is core.compute_policy_loss_vanilla
    adapter.uninstall()
    assert losses.compute_value_loss.__module__ == core.compute_gae_advantage_return.__module__ == core.__name__
    assert core.get_adv_estimator_fn("rloo") is core.compute_rloo_outcome_advantage
    with pytest.raises(ValueError, match="instructrl"):
        core.get_policy_loss_fn("instructrl")


ASKED = "import verl.trainer.ppo.core_algos as core; print('@', core.compute_gae_advantage_return.__module__)"


@pytest.mark.parametrize(
    ("name", "value", "replaced"),
    [
        ("VERL_USE_EXTERNAL_PLUGINS", "auto", False),
        ("VERL_USE_EXTERNAL_PLUGINS", "other, instructrl", True),
        ("VERL_USE_EXTERNAL_MODULES", "instructrl.integrations.verl_install", True),
    ],
)
def test_a_process_installs_it_where_it_is_named_and_not_because_it_is_there(name, value, replaced, tmp_path):
    entry = tmp_path / "named-0.dist-info"
    entry.mkdir()
    (entry / "METADATA").write_text("Metadata-Version: 2.1\nName: named\nVersion: 0\n")
    (entry / "entry_points.txt").write_text(ENTRY_POINT)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", name: value}
    done = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found = done.stdout.split("@ ")[1].strip()
    assert (found == "instructrl.integrations.verl.advantages") == replaced
    assert ("instructrl for verl" in done.stderr) == replaced
