"""Liger's losses from hidden states with ours in their place."""

import importlib

import pytest
import torch

from benchmarks.end_to_end.host_runs import record

pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")
from instructrl.integrations import liger as adapter
from instructrl.integrations.liger import grpo, heads
from instructrl.integrations.selfcheck import Sizes, drawn


@pytest.fixture
def installed():
    report = adapter.install(strict=True)
    yield report
    adapter.uninstall()


def modules():
    return [importlib.import_module(f"liger_kernel.chunked_loss.{name}") for name in ("grpo_loss", "functional")]


def test_ours_is_where_liger_looks_and_leaves_again(installed):
    losses, functions = modules()
    named = losses.LigerFusedLinearGRPOFunction, functions.liger_fused_linear_grpo
    assert {x.__module__ for x in named} == {grpo.__name__}
    adapter.uninstall()
    named = losses.LigerFusedLinearGRPOFunction, functions.liger_fused_linear_grpo
    assert grpo.__name__ not in {x.__module__ for x in named}


def test_what_ours_says_is_passed_on_to_nobody():
    """So that the self-check is not Liger's own beside itself."""
    calls = [grpo.Arguments(*each.args) for each in drawn(grpo.calls, Sizes())]
    assert {call.loss_type for call in calls if not call.ours} == {"cispo", "vespo", "luspo"}
    assert {call.loss_type for call in calls if call.ours} == {"dapo", "grpo", "bnpo", "dr_grpo", "sapo"}


@pytest.mark.parametrize(
    "changed", [{"delta": 1.1}, {"ref_logprobs": None}, {"loss_type": "dr_grpo"}, {"level": "word"}]
)
def test_what_is_not_ours_is_its_own(changed):
    given = grpo.Arguments(*drawn(grpo.calls, Sizes())[0].args)._replace(**changed)
    assert not given.ours


def test_half_precision_is_nearer_and_autocast_is_the_same():
    base = importlib.import_module("liger_kernel.chunked_loss.fused_linear_ppo").LigerFusedLinearPPOBase
    hidden, weight, ids, _ = drawn(heads.chunks, Sizes(tokens=40, hidden=64, vocabulary=300))[0].args
    exact = base.chunk_forward(hidden.bfloat16().float(), weight.bfloat16().float(), ids)
    ours = heads.chunk_forward_of(base.chunk_forward)
    theirs, found = (f(hidden.bfloat16(), weight.bfloat16(), ids) for f in (base.chunk_forward, ours))
    assert theirs.dtype == found.dtype == torch.float32
    assert (found - exact).abs().max() <= (theirs - exact).abs().max()
    given = grpo.Arguments(*drawn(grpo.calls, Sizes())[0].args)
    ours = grpo.grpo_of(modules()[0].LigerFusedLinearGRPOFunction)
    with torch.autocast("cpu", torch.bfloat16):
        under = ours.apply(*given)[0]
    halves = given._replace(hidden=given.hidden.bfloat16(), weight=given.weight.bfloat16())
    assert torch.equal(under, ours.apply(*halves)[0])
    (by_hidden,) = torch.autograd.grad(under, given.hidden)
    assert by_hidden.dtype == torch.float32


@pytest.mark.parametrize("loss", ["grpo", "dpo"])
def test_ten_steps_with_its_losses_are_the_same(loss):
    with_adapter, without = (record.run("liger", loss, adapter=on) for on in (True, False))
    assert len(with_adapter["replaced"]) == len(adapter.ADAPTER.replacements)
    assert not without["replaced"]
    assert len(without["losses"]) == 10
    assert max(record.largest_gaps(with_adapter, without).values()) < 1e-5
