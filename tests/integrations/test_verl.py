"""verl's own functions and engines with ours in their place, and what its processes are told by."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.end_to_end.host_runs import record

pytest.importorskip("verl", reason="verl is not installed")
from instructrl.integrations import selfcheck
from instructrl.integrations import verl as adapter
from instructrl.integrations.adapter import own_function

ROOT = Path(__file__).parent.parent.parent
ENTRY_POINT = "[verl.plugins]\ninstructrl = instructrl.integrations.verl_plugin\n"
CUDA_ALONE = "verl.utils.kernel.linear_cross_entropy:linear_cross_entropy"
CORE = "verl.trainer.ppo.core_algos"


@pytest.fixture
def installed():
    report = adapter.install(strict=True)
    yield report
    adapter.uninstall()


@pytest.fixture
def core():
    return importlib.import_module(CORE)


def test_all_of_it_is_replaced_where_it_is_used_and_put_back(installed, core):
    losses = importlib.import_module("verl.workers.utils.losses")
    engine = importlib.import_module("verl.workers.engine.fsdp.transformer_impl")
    head = importlib.import_module("verl.utils.experimental.torch_functional")
    assert [row.name for row in installed.left_alone] == [CUDA_ALONE]
    assert losses.compute_value_loss is core.compute_value_loss
    ours = (losses.kl_penalty, engine.logprobs_from_logits, core.verl_F.masked_whiten, head.FusedLinearForPPOFunction)
    estimators = [core.get_adv_estimator_fn(name) for name in ("rloo", "reinforce_plus_plus")]
    hooks = [core.get_policy_loss_fn(f"instructrl{kind}") for kind in ("", "_gspo", "_cispo", "_sapo")]
    assert all(x.__module__.startswith(adapter.__name__) for x in (*ours, *estimators, *hooks))
    assert core.get_policy_loss_fn("vanilla") is core.compute_policy_loss_vanilla
    assert core.compute_policy_loss_vanilla.__module__ == CORE
    adapter.uninstall()
    assert losses.compute_value_loss.__module__ == core.compute_gae_advantage_return.__module__ == CORE
    assert core.get_adv_estimator_fn("rloo") is core.compute_rloo_outcome_advantage
    with pytest.raises(ValueError, match="instructrl"):
        core.get_policy_loss_fn("instructrl")


def rows():
    return {each.name.rpartition(":")[2]: each for each in adapter.ADAPTER.replacements}


def both(name):
    """The host's own, and ours over one that says that it was called."""
    each, calls = rows()[name], []
    own = own_function(each.name)

    def noted(*args, **kwargs):
        calls.append(args)
        return own(*args, **kwargs)

    return own, each.stand_in(noted), calls


@pytest.mark.parametrize("name", [name for name, each in rows().items() if not each.device])
def test_what_the_host_uses_is_computed_here(name):
    """Of the examples, which are what the host calls its functions with."""
    _, ours, calls = both(name)
    each = rows()[name]
    for example in selfcheck.drawn(each.examples, selfcheck.Sizes()):
        each.call(ours, *example.args, **example.kwargs)
    # A subtraction and its absolute value, what ours has no gradient of, and a discount above 1.
    passed_on = {"kl_penalty": 2, "calculate_sum_pi_squared_from_logits": 1, "compute_gae_advantage_return": 1}
    passed_on["compute_reinforce_plus_plus_outcome_advantage"] = 1
    assert len(calls) == passed_on.get(name, 0)


def draw(dtype=torch.float32):
    return selfcheck.Draw(sizes=selfcheck.Sizes(), generator=torch.Generator().manual_seed(1), dtype=dtype)


def same(own, ours):
    own, ours = (torch.utils._pytree.tree_leaves(x) for x in (own, ours))
    assert len(own) == len(ours)
    for theirs, found in zip(own, ours, strict=True):
        torch.testing.assert_close(found, theirs, rtol=0, atol=0, equal_nan=True)


def test_what_ours_do_not_compute_is_the_hosts(core):
    given = draw()
    x, mask = given.normal(3, 5), given.lengths(3, 5)
    for name, args in [
        ("masked_whiten", (x, mask * 0.5)),
        ("masked_whiten", (x.bfloat16(), mask)),
        ("compute_gae_advantage_return", (x, given.normal(3, 5), mask * 0.5, 1.0, 1.0)),
        ("compute_value_loss", (x, given.normal(3, 5), given.normal(3, 5), mask * 0.5, 0.2)),
        ("kl_penalty", (x, given.normal(5), "k3")),
        ("compute_rloo_outcome_advantage", (x.bfloat16(), mask, np.array(["a", "b", "a"]))),
    ]:
        own, ours, calls = both(name)
        same(own(*args), ours(*args))
        assert len(calls) == 1, name


@pytest.mark.parametrize("counted", [0, 1])
def test_too_few_tokens_are_the_hosts_error(counted):
    mask = torch.zeros(2, 3, dtype=torch.int64)
    mask[0, :counted] = 1
    for name in ("compute_gae_advantage_return", "masked_whiten"):
        _, ours, _ = both(name)
        with pytest.raises(ValueError, match="mask"):
            ours(torch.ones(2, 3), torch.ones(2, 3), mask, 1.0, 1.0) if "gae" in name else ours(torch.ones(2, 3), mask)


def policy(name, log_ratio, mode="token-mean", **changes):
    """Losses, metrics and gradients of both, where all log ratios are what is given."""
    own, ours, calls = both(f"compute_policy_loss_{name}")
    config = importlib.import_module("verl.workers.config").ActorConfig(
        strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, **changes
    )
    found = []
    for function in (own, ours):
        given = draw()
        old, mask = given.normal(3, 5), given.lengths(3, 5)
        new = (old + log_ratio + 0.1 * given.normal(3, 5)).requires_grad_()
        loss, metrics = function(old, new, given.normal(3, 5), mask, mode, config)
        found.append((loss.detach(), *torch.autograd.grad(loss, new), metrics))
    return found, len(calls)


@pytest.mark.parametrize("log_ratio", [-25.0, -12.0, 0.0, 12.0, 25.0])
@pytest.mark.parametrize("name", ["vanilla", "gspo", "cispo", "sapo"])
def test_clamps_of_the_ratio_and_metrics(name, log_ratio):
    (own, ours), calls = policy(name, log_ratio)
    # The clamp of a sequence's ratio is one-sided there.
    assert calls == (name == "gspo" and log_ratio > 10)
    for theirs, found in zip(own[:2], ours[:2], strict=True):
        torch.testing.assert_close(found, theirs, rtol=2e-5, atol=2e-6)
    assert ours[2] == pytest.approx(own[2], rel=1e-5, abs=1e-6)


def test_bounds_and_means_that_the_host_takes():
    for changes in ({"clip_ratio_low": 3.0}, {"clip_ratio_high": 10.0}, {"clip_ratio_c": 1.5}):
        (own, ours), calls = policy("vanilla", 0.0, **changes)
        torch.testing.assert_close(ours[:2], own[:2], rtol=1e-5, atol=1e-6)
        assert calls == 0
    with pytest.raises(ValueError, match="Invalid loss_agg_mode"):
        policy("vanilla", 0.0, "mean of all")


def test_what_is_not_counted_is_not_read(core):
    _, ours, _ = both("compute_policy_loss_vanilla")
    (_, found), _ = policy("vanilla", 0.0)
    given = draw()
    old, mask = given.normal(3, 5), given.lengths(3, 5)
    new = (old + 0.1 * given.normal(3, 5)).masked_fill(~mask, torch.nan).requires_grad_()
    config = importlib.import_module("verl.workers.config").ActorConfig(
        strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1
    )
    advantages = given.normal(3, 5)
    loss, metrics = ours(old, new, advantages, mask, "token-mean", config)
    assert torch.autograd.grad(loss, new)[0].isfinite().all()
    assert metrics == pytest.approx(found[2], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_back_as_such_and_nearer(dtype):
    logits = draw().normal(6, 200, scale=3.0).to(dtype)
    ids, exact = torch.arange(6), torch.log_softmax(logits.double(), -1)
    own, ours, _ = both("logprobs_from_logits")
    pairs = [(own(logits, ids), ours(logits, ids), exact[ids, ids])]
    own, ours, _ = both("entropy_from_logits")
    pairs.append((own(logits), ours(logits), -(exact.exp() * exact).sum(-1)))
    for theirs, found, truth in pairs:
        assert found.dtype == theirs.dtype == dtype
        assert float((found.double() - truth).abs().max()) <= float((theirs.double() - truth).abs().max())


def test_the_head_under_autocast():
    given = draw()
    hidden, weight, ids = given.normal(2, 3, 16), given.normal(40, 16, scale=0.25), given.ids(2, 3, below=40)
    own, ours, _ = both("FusedLinearForPPOFunction")
    with torch.autocast("cpu", torch.bfloat16):
        theirs, found = (function.apply(hidden.bfloat16(), weight, ids, 0.7) for function in (own, ours))
    assert [x.dtype for x in theirs] == [x.dtype for x in found]
    torch.testing.assert_close(found, theirs, rtol=0.0, atol=0.05)


def test_the_triton_head_on_a_cpu_is_the_formula():
    given = draw()
    hidden, weight = given.normal(2, 3, 16, grad=True), given.normal(40, 16, grad=True)
    ids = given.ids(2, 3, below=40)
    _, ours, _ = both("linear_cross_entropy")
    found, entropy = ours(hidden, weight, ids, 0.7, "none", None)
    exact = torch.log_softmax(hidden.double().flatten(0, 1) @ weight.double().T / 0.7, -1)
    torch.testing.assert_close(found, exact[torch.arange(6), ids.flatten()].float())
    torch.testing.assert_close(entropy, -(exact.exp() * exact).sum(-1).float())
    with pytest.raises(RuntimeError):
        ours(hidden, weight, ids, 0.7, "none", "a process group")


def test_with_flash_attention_it_is_checked_on_a_cpu_all_the_same(monkeypatch):
    """Which has kernels for GPUs alone."""

    def on_a_gpu(logits, *args, **kwargs):
        raise AssertionError("a kernel for GPUs")

    for module, flag in [
        ("verl.utils.torch_functional", "FLAH_ATTN_CROSS_ENTROPY_LOSS_AVAILABLE"),
        ("verl.utils.experimental.torch_functional", "_FLASH_ATTN_CROSS_ENTROPY_AVAILABLE"),
    ]:
        found = importlib.import_module(module)
        monkeypatch.setattr(found, flag, True)
        monkeypatch.setattr(found, "cross_entropy_loss", on_a_gpu, raising=False)
    assert not adapter.ADAPTER.examine().problems
    assert found._FLASH_ATTN_CROSS_ENTROPY_AVAILABLE


def test_with_flash_attention_it_is_float32_and_overwrites_logits_as_there(monkeypatch):
    log_probs = importlib.import_module("instructrl.integrations.verl.log_probs")
    monkeypatch.setattr(log_probs, "_host_takes_flash_attention", lambda logits: True)
    _, ours, _ = both("logprobs_from_logits")
    logits, ids = draw().normal(6, 20).bfloat16(), torch.arange(6)
    expected = torch.nn.functional.one_hot(ids, 20) - torch.softmax(logits.float(), -1)
    given = logits.clone().requires_grad_()
    found = ours(given * 1.0, ids)
    assert found.dtype == torch.float32
    (gradient,) = torch.autograd.grad(found.sum(), given)
    torch.testing.assert_close(gradient.float(), expected, rtol=0.01, atol=0.01)
    leaf = logits.clone()
    ours(leaf.requires_grad_(), ids, inplace_backward=False).sum().backward()
    assert torch.equal(leaf.detach(), logits)


INTERPRETED = """
import contextlib, torch
from triton.runtime import interpreter

class Interpreter:
    # It has masks as numbers, and takes them as bool.
    def __init__(self, own):
        self.own = own

    def __getattr__(self, name):
        return getattr(self.own, name)

    def store(self, pointers, values, mask):
        return self.own.store(pointers, values, mask.astype(bool))

    def load(self, pointers, mask, *others):
        return self.own.load(pointers, mask.astype(bool), *others)

interpreter._interpreter = Interpreter(interpreter._interpreter)
torch.cuda.nvtx.range = lambda *args: contextlib.nullcontext()
from instructrl.integrations import adapter, selfcheck, verl

[row] = [each for each in verl.ADAPTER.replacements if each.device]
own = adapter.own_function(row.name)
print("@", selfcheck.difference(own, row.stand_in(own), row.examples, row.call, "cpu") or "same")
"""


def test_its_triton_kernels_interpreted_give_the_numbers_of_ours():
    """Without its assertions that tensors are on a GPU (-O)."""
    pytest.importorskip("triton", reason="triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-O", "-c", INTERPRETED], capture_output=True, text=True, env=environment)
    assert "@ same" in done.stdout, done.stdout + done.stderr[-2000:]


def test_the_engines_compiled_entropy(installed):
    verl_f = importlib.import_module("verl.utils.torch_functional")
    compiled = torch.compile(verl_f.entropy_from_logits, dynamic=True, backend="aot_eager", fullgraph=True)
    for count in (3, 5):
        logits = draw().normal(count, 7, grad=True)
        torch.testing.assert_close(compiled(logits), torch.distributions.Categorical(logits=logits).entropy())


ASKED = f"import {CORE} as core; print('@', core.compute_gae_advantage_return.__module__)"


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


def test_the_entry_point_is_the_one_of_the_package():
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '[project.entry-points."verl.plugins"]\ninstructrl = "instructrl.integrations.verl_plugin"\n' in declared


@pytest.mark.parametrize("trainer", ["ppo", "grpo", "gspo"])
def test_ten_updates_of_its_engines_are_the_same(trainer):
    with_adapter, without = (record.run("verl", trainer, adapter=on) for on in (True, False))
    assert len(with_adapter["replaced"]) == len(adapter.ADAPTER.replacements)
    assert not without["replaced"]
    assert len(without["losses"]) == (20 if trainer == "ppo" else 10)
    assert max(record.largest_gaps(with_adapter, without).values()) < 1e-5
