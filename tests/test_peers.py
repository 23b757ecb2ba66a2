"""Peers of the benchmark: each that is installed computes what its op computes, and is given only what it can take."""

from dataclasses import replace

import pytest
import torch

from benchmarks.core import peers, runner
from benchmarks.core.report import figures_table
from benchmarks.core.timing import CpuMeter
from benchmarks.core.workloads import public
from benchmarks.ops import bench
from instructrl.ops.cases import CASES

CPU = CpuMeter()
SMALL = {
    "logprobs.token_logprobs": ("5x257",),
    "logprobs.token_logprobs_and_entropy": ("5x257", "temperature"),
    "logprobs.linear_token_logprobs": ("5x8x257", "bias and temperature", "masked"),
    "logprobs.linear_token_logprobs_and_entropy": ("5x8x257", "bias and temperature"),
    "likelihood.linear_nll_loss": ("5x8x257", "bias and temperature", "masked"),
    "advantages.generalized_advantages": ("4x5", "3x257", "discounted"),
    "advantages.masked_whiten": ("(4, 5)", "(3, 257)"),
    "ppo.clipped_policy_loss": ("(4, 5)", "(257,)"),
    "ppo.ppo_loss": ("(4, 5)", "(257,)"),
    "ppo.linear_ppo_loss": ("5x8x257", "masked"),
}
"""Cases that between them have each option, mask and gradient that a peer says it can be given."""

PEERS = [(op, name) for op, by_name in peers.PEERS.items() for name in by_name]


def row_of(op, name):
    return replace(bench.row_of(next(x for x in CASES if (x.op, x.name) == (op, name))), compile=False)


def inputs_of(row):
    return row.inputs(CPU)


def checked(row):
    """What is found of everybody: "error", or why they are "left_out"."""
    arguments = inputs_of(row)
    attempt = runner.Attempt(rounds=1)
    return runner.check(row.providers(CPU, arguments), arguments, row.truth(arguments), CPU, attempt)


@pytest.mark.parametrize(("op", "name"), PEERS)
def test_a_peer_computes_what_the_op_computes(op, name, monkeypatch):
    monkeypatch.setattr(bench, "PEERS", {op: {name: peers.PEERS[op][name]}})
    num_taken = 0
    for found in (checked(row_of(op, small)) for small in SMALL[op]):
        if name not in found:
            continue
        num_taken += 1
        why = found[name].get("left_out", "")
        if why.startswith(("ImportError", "ModuleNotFoundError")):
            pytest.skip(f"{name}: {why}")
        assert why == ""
    assert num_taken > 0


def test_every_row_of_an_op_with_peers_is_one_they_are_given():
    for row in bench.ROWS:
        arguments = inputs_of(row) if row.work.op.startswith(("advantages", "ppo.clipped", "ppo.ppo")) else {}
        for name, peer in row.peers.items():
            assert peer.takes(public(row.work.op), arguments), (row.name, name)
    assert {row.work.op for row in bench.ROWS if row.peers} == set(peers.PEERS)


def test_a_peer_is_not_given_an_option_or_a_mask_that_it_does_not_know():
    def taken(op, small, **what):
        return peers.Peer(adapt=lambda arguments: list, **what).takes(public(op), inputs_of(row_of(op, small)))

    assert taken("logprobs.token_logprobs", "5x257")
    assert not taken("logprobs.token_logprobs", "temperature")
    assert taken("logprobs.token_logprobs", "temperature", options=("temperature",))
    assert not taken("logprobs.token_logprobs", "masked")
    assert taken("logprobs.token_logprobs", "masked", mask=peers.something_counts)
    assert not taken("logprobs.token_logprobs", "all masked", mask=peers.something_counts)
    assert taken("advantages.generalized_advantages", "4x5", mask=peers.right_padded)
    assert not taken("advantages.generalized_advantages", "gaps", mask=peers.right_padded)
    assert not taken("advantages.generalized_advantages", "packed", options=("gamma", "lam"), mask=peers.right_padded)


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
    peer = peers.Peer(adapt=adapt, mask=peers.something_counts)
    monkeypatch.setattr(bench, "PEERS", {"ppo.clipped_policy_loss": {"stand-in": peer}})
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
