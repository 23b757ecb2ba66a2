"""Peers of the benchmark: each that is installed computes what its op computes, and its rows have what it can take."""

from dataclasses import replace

import pytest
import torch

from benchmarks.core import peers, runner
from benchmarks.core.report import figures_table
from benchmarks.core.timing import CpuMeter
from benchmarks.ops import bench
from instructrl.ops.cases import CASES

CPU = CpuMeter()
SMALL = {
    "logprobs.token_logprobs": ("5x257",),
    "logprobs.token_logprobs_and_entropy": ("5x257",),
    "logprobs.linear_token_logprobs": ("5x8x257",),
    "logprobs.linear_token_logprobs_and_entropy": ("5x8x257",),
    "likelihood.linear_nll_loss": ("5x8x257",),
    "advantages.generalized_advantages": ("4x5", "3x257"),
    "advantages.masked_whiten": ("(4, 5)", "(3, 257)"),
    "ppo.clipped_policy_loss": ("(4, 5)", "(257,)"),
    "ppo.ppo_loss": ("(4, 5)", "(257,)"),
    "ppo.linear_ppo_loss": ("5x8x257",),
}
"""Cases like the large ones: no options, and gradients and masks as they have them."""

PEERS = [(op, name) for op, by_name in peers.PEERS.items() for name in by_name]


def row_of(op, name):
    return replace(bench.row_of(next(x for x in CASES if (x.op, x.name) == (op, name))), compile=False)


def inputs_of(row):
    return row.inputs(CPU)


def checked(row):
    """What is found of everybody: "error", or why they are "left_out"."""
    arguments = inputs_of(row)
    attempt = runner.Attempt(rounds=1)
    return runner.check(row.providers(CPU), arguments, row.truth(arguments), CPU, attempt)


@pytest.mark.parametrize(("op", "name"), PEERS)
def test_a_peer_computes_what_the_op_computes(op, name, monkeypatch):
    monkeypatch.setattr(bench, "PEERS", {op: {name: peers.PEERS[op][name]}})
    for small in SMALL[op]:
        why = checked(row_of(op, small))[name].get("left_out", "")
        if why.startswith(("ImportError", "ModuleNotFoundError")):
            pytest.skip(f"{name}: {why}")
        assert why == ""


def test_rows_with_peers_have_no_options_and_the_masks_that_those_take():
    """Adapters know no bias, no temperature, no settings; TorchRL's advantages end where the mask does."""
    for row in bench.ROWS:
        if row.peers:
            x = inputs_of(row)
            assert not {"bias", "temperature", "settings", "logit_settings", "weights", "offsets", "lam"} & set(x), (
                row.name
            )
            if row.work.op.startswith("logprobs"):
                assert "mask" not in x or bool(x["mask"].all()), row.name
            if row.work.op == "advantages.generalized_advantages":
                assert bool((x["mask"][:, 1:] <= x["mask"][:, :-1]).all()), row.name
    assert {row.work.op for row in bench.ROWS if row.peers} == set(peers.PEERS)


def test_what_a_peer_is_given_is_0_where_nothing_counts():
    arguments = inputs_of(row_of("ppo.ppo_loss", "(4, 5)"))
    given = peers.padded_with_zeros(arguments)
    mask = arguments["mask"]
    assert not mask.all()
    for name in ("logprobs", "values", "returns"):
        assert not arguments[name][~mask].isfinite().all()
        assert given[name][~mask].eq(0.0).all()
        assert torch.equal(given[name][mask], arguments[name][mask])
        assert given[name].requires_grad == arguments[name].requires_grad
    # Logits of a position and hidden states go, the weights of the head stay.
    head = inputs_of(row_of("logprobs.linear_token_logprobs", "masked"))
    assert peers.padded_with_zeros(head)["hidden"].isfinite().all()
    assert peers.padded_with_zeros(head)["weight"] is head["weight"]


def stand_in(monkeypatch, adapt):
    """What is found for the policy loss where `adapt` is its only peer."""
    monkeypatch.setattr(bench, "PEERS", {"ppo.clipped_policy_loss": {"stand-in": adapt}})
    return checked(row_of("ppo.clipped_policy_loss", "(4, 5)"))


def right(logprobs, old_logprobs, advantages, mask):
    def call():
        ratio = (logprobs - old_logprobs).exp()
        gain = torch.minimum(advantages * ratio, advantages * ratio.clamp(0.8, 1.2))
        return -(gain * mask).sum() / mask.sum()

    return call


def test_a_peer_that_is_right_is_timed(monkeypatch):
    found = stand_in(monkeypatch, right)
    assert "left_out" not in found["stand-in"]
    assert found["eager"]["error"] <= 1e-6


def test_a_peer_that_is_not_installed_is_skipped_without_a_word(monkeypatch):
    def missing(**_):
        import a_library_that_is_not_installed  # noqa: F401  # pyright: ignore

    found = stand_in(monkeypatch, missing)
    assert "left_out" in found["stand-in"]
    named = {name: found["stand-in"] for name in ("stand-in",)}
    table = figures_table([{"row": "a row", "providers": {"wrong": {"left_out": "wrong: too far"}, **named}}])
    assert "| a row | wrong | left out: wrong: too far |" in table
    assert "stand-in" not in table


@pytest.mark.parametrize(
    "wrong",
    [
        lambda **x: lambda: 1.001 * right(**x)(),
        lambda **x: lambda: right(**x)() * x["mask"].sum(),
        lambda **x: lambda: right(**x)().detach(),
        lambda **x: lambda: (right(**x)(), right(**x)()),
        lambda **x: lambda: right(**x)() + x["logprobs"].sum() * float("nan"),
    ],
    ids=["a thousandth off", "a sum for a mean", "no gradient", "one result too many", "NaN"],
)
def test_a_peer_that_computes_something_else_is_left_out(monkeypatch, wrong):
    assert "left_out" in stand_in(monkeypatch, wrong)["stand-in"]
