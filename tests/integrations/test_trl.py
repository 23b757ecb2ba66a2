"""TRL's own functions and trainers with ours in their place."""

import importlib
from types import SimpleNamespace

import pytest
import torch

from benchmarks.end_to_end.host_runs import record

pytest.importorskip("trl", reason="trl is not installed")
from instructrl.integrations import trl as adapter


@pytest.fixture
def installed():
    report = adapter.install(strict=True)
    yield report
    adapter.uninstall()


def test_all_of_it_is_replaced_where_it_is_used(installed):
    names = ("sft_trainer", "dpo_trainer", "grpo_trainer", "kto_trainer", "rloo_trainer", "utils")
    modules = [importlib.import_module(f"trl.trainer.{name}") for name in names]
    ours = [vars(module)[name] for module in modules for name in vars(module) if "selective_log_softmax" in name]
    assert ours
    assert {x.__module__ for x in ours} == {adapter.__name__}
    assert isinstance(modules[-1]._ChunkedLogProbFunction, adapter._Head)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_head_in_other_dtypes_and_under_autocast(dtype):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 16, generator=generator, dtype=torch.float64) for n in (6, 40))
    ids = torch.arange(6)
    exact = torch.log_softmax(hidden @ weight.T, -1)[ids, ids]
    arguments = (hidden.to(dtype), weight.to(dtype), None, ids, 1.0, 32768, None, 1.0, ("log_probs",))
    bound = 64 * torch.finfo(dtype).eps * float(exact.abs().max())
    apply = adapter._Head(None).apply
    found = apply(*arguments)[0]
    assert float((found.double() - exact).abs().max()) < bound
    with torch.autocast("cpu", torch.bfloat16):
        under = apply(hidden.float(), weight.float(), *arguments[2:])[0]
    halves = apply(hidden.bfloat16(), weight.bfloat16(), *arguments[2:])[0]
    torch.testing.assert_close(under, halves)


def test_a_weight_that_is_empty_in_the_backward_is_left_to_the_host():
    weight = torch.randn(40, 16, requires_grad=True)
    weight.ds_id = 0
    arguments = (torch.randn(6, 16), weight, None, torch.arange(6), 1.0, 32768, None, 1.0, ("log_probs",))
    own = SimpleNamespace(apply=lambda *given: given)
    assert all(x is y for x, y in zip(adapter._Head(own).apply(*arguments), arguments, strict=True))


def test_half_precision_on_an_accelerator_gives_float32_as_the_kernel_of_the_host_does():
    found = torch.zeros(3)
    for device, dtype in (("cuda", torch.float32), ("xpu", torch.float32), ("cpu", torch.bfloat16)):
        logits = SimpleNamespace(device=torch.device(device), dtype=torch.bfloat16)
        assert adapter._rounded(found, logits).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_back_as_such_and_nearer(dtype):
    from trl.trainer.utils import selective_log_softmax

    logits = torch.randn(3, 5, 200, generator=torch.Generator().manual_seed(0)).to(dtype)
    ids = torch.arange(15).view(3, 5)
    own, ours = selective_log_softmax(logits, ids), adapter._selective_log_softmax(logits, ids)
    exact = torch.log_softmax(logits.double(), -1).gather(-1, ids[..., None])[..., 0]
    assert own.dtype == ours.dtype == dtype
    assert float((ours.double() - exact).abs().max()) <= float((own.double() - exact).abs().max())


def test_ten_steps_of_its_trainer_are_the_same():
    with_adapter, without = (record.run("trl", "grpo", adapter=on) for on in (True, False))
    assert len(with_adapter["replaced"]) == len(adapter.ADAPTER.replacements)
    assert not without["replaced"]
    assert len(without["losses"]) == 10
    assert max(record.largest_gaps(with_adapter, without).values()) < 1e-5
