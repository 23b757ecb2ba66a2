"""torchtune's own functions, losses and recipes with ours in their place."""

import importlib

import pytest
import torch

from benchmarks.end_to_end.host_runs import record

pytest.importorskip("torchtune", reason="torchtune is not installed")
from instructrl.integrations import torchtune as adapter


@pytest.fixture
def installed():
    report = adapter.install(strict=True)
    yield report
    adapter.uninstall()


def test_recipes_find_ours_under_their_names(installed):
    rlhf = importlib.import_module("torchtune.rlhf")
    assert len(installed.rows) == len(adapter.ADAPTER.replacements)
    for name in ("estimate_advantages", "logits_to_logprobs", "get_batch_log_probs"):
        assert getattr(rlhf, name).__module__ == adapter.__name__


@pytest.mark.parametrize("name", ["PPOLoss", "CEWithChunkedOutputLoss"])
def test_a_configuration_makes_our_losses(name):
    from omegaconf import DictConfig
    from torchtune.config import instantiate

    assert type(instantiate(DictConfig({"_component_": f"{adapter.__name__}.{name}"}))) is getattr(adapter, name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_back_as_such_and_nearer(dtype):
    from torchtune.rlhf import get_batch_log_probs, logits_to_logprobs

    logits = torch.randn(3, 9, 200, generator=torch.Generator().manual_seed(0)).to(dtype)
    ids = torch.arange(27).view(3, 9)
    pairs = (
        (logits_to_logprobs, adapter._logits_to_logprobs),
        (get_batch_log_probs, adapter._get_batch_log_probs(get_batch_log_probs)),
    )
    for own, ours in pairs:
        exact, theirs, found = own(logits.double(), ids), own(logits, ids), ours(logits, ids)
        assert theirs.dtype == found.dtype == dtype
        assert float((found.double() - exact).abs().max()) <= float((theirs.double() - exact).abs().max())


def test_what_no_token_counts_in_is_0_and_not_nan():
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = adapter.PPOLoss()(x.detach(), x, x.detach(), x.detach(), x, x.detach(), nothing, nothing)[0]
    loss.backward()
    assert loss.item() == 0.0
    assert not x.grad.any()


@pytest.mark.parametrize("recipe", ["ppo", "sft"])
def test_ten_steps_of_its_recipes_are_the_same(recipe):
    with_adapter, without = (record.run("torchtune", recipe, adapter=on) for on in (True, False))
    assert len(with_adapter["replaced"]) == len(adapter.ADAPTER.replacements)
    assert not without["replaced"]
    assert len(without["losses"]) == 10
    assert max(record.largest_gaps(with_adapter, without).values()) < 1e-5
