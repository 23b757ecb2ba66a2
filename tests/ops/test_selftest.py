"""The self-test: silent about a backend that computes, loud about one that does not."""

import pytest
import torch

from instructrl import kernels, ops
from instructrl.commands import doctor
from instructrl.commands.settings import DoctorCommand
from instructrl.ops import dispatch, selftest

OP = "ranking.pairwise_ranking_loss"
REFERENCE = dispatch.OPS[OP].reference


def supports_everything(*args):
    return None


@pytest.fixture
def attach():
    """(function, operation, devices) -> a backend "toy" with this one implementation."""
    attached = []

    def make(function, op=OP, devices=("cpu",)):
        implementation = kernels.Implementation(function=function, unsupported=supports_everything)
        kernels.attach("toy", devices=devices, implementations={op: implementation})
        attached.append("toy")

    yield make
    for name in attached:
        kernels.detach(name)


def broken_value(scores, *others):
    right = REFERENCE(scores, *others)
    return right._replace(loss_sum=right.loss_sum + 1e-5)


def broken_gradient(scores, *others):
    right = REFERENCE(scores, *others)
    return right._replace(loss_sum=right.loss_sum.detach() + (scores - scores.detach()).sum())


def not_a_number(scores, *others):
    right = REFERENCE(scores, *others)
    return right._replace(loss_sum=right.loss_sum * float("nan"))


def does_not_launch(scores, *others):
    raise RuntimeError("no kernel image\nfor this device")


def test_the_reference_is_right():
    findings = selftest.self_test("reference")
    assert [(finding.backend, finding.error) for finding in findings if finding.device == "cpu"] == [("reference", "")]
    assert findings[0].ops == tuple(probe.op for probe in selftest.PROBES)


@pytest.mark.parametrize("probe", selftest.PROBES, ids=lambda probe: probe.op)
def test_the_answers_are_those_of_float64(probe):
    """The same question asked in float64, where nothing hides in the rounding."""
    torch.set_default_dtype(torch.float64)
    try:
        answer = probe.ask(torch.device("cpu"))
    finally:
        torch.set_default_dtype(torch.float32)
    assert answer.value.dtype == torch.float64
    bound = 8 * torch.finfo(torch.float64).eps * max(map(abs, probe.gradient))
    assert abs(answer.value.item() - probe.value) <= 2 * bound
    differences = [abs(a - b) for a, b in zip(answer.gradient.flatten().tolist(), probe.gradient, strict=True)]
    assert max(differences) <= bound


def test_a_backend_is_asked_what_it_implements(attach):
    attach(REFERENCE)
    (finding,) = selftest.self_test("toy")
    assert (finding.backend, finding.device, finding.ops, finding.error) == ("toy", "cpu", (OP,), "")


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (broken_value, "found the value"),
        (broken_gradient, "found the gradient"),
        (not_a_number, "found the value [nan]"),
        (does_not_launch, "RuntimeError: no kernel image"),
    ],
)
def test_a_broken_backend_is_found(attach, function, says):
    attach(function)
    (finding,) = selftest.self_test("toy")
    assert finding.error.startswith(OP)
    assert says in finding.error
    assert "\n" not in finding.error


def test_a_backend_for_another_device_is_not_asked_here(attach):
    attach(does_not_launch, devices=("xpu",))
    assert selftest.self_test("toy") == []


def test_a_backend_without_a_probed_operation_is_not_asked(attach):
    attach(does_not_launch, op="sampling.sample_tokens")
    assert selftest.self_test("toy") == []


def test_a_backend_that_is_not_here_is_not_asked():
    assert selftest.self_test("nonsense") == []


def test_the_choice_of_the_backend_is_left_as_it_was(attach):
    attach(does_not_launch)
    with ops.use_backend("reference"):
        selftest.self_test("toy")
        selftest.self_test("reference")
        every = torch.ones(1, 2, 2, dtype=torch.bool)
        assert float(ops.ranking.pairwise_ranking_loss(torch.zeros(1, 2), every).loss_sum) == pytest.approx(1.3862944)


def test_doctor_fits_a_terminal(monkeypatch, capsys, attach):
    """One line an operation, one column a backend, each reason once, one line a self-test."""
    monkeypatch.setenv("COLUMNS", "80")
    attach(REFERENCE)
    monkeypatch.setattr(kernels, "_missing", {"native": "not built", "triton": "not built either"})
    assert doctor.main(DoctorCommand()) == 0
    lines = capsys.readouterr().out.splitlines()
    names = kernels.names()
    assert [line.split() for line in lines if line.startswith("op ")] == [["op", *names]]
    rows = {parts[0]: parts[1:] for line in lines if (parts := line.split()) and parts[0] in dispatch.OPS}
    assert set(rows) == set(dispatch.OPS)
    usable = {(row.op, row.backend): "yes" if row.usable else "no" for row in dispatch.usability()}
    assert rows == {op: [usable[op, name] for name in names] for op in dispatch.OPS}
    assert dict(zip(names, rows[OP], strict=True))["toy"] == "yes"
    for backend in ("native", "triton"):
        why = kernels.why_missing(backend)
        assert why is None or lines.count(f"{backend}: {why}") == 1
    assert sum(line.startswith("self-test, toy on cpu: 1 op right") for line in lines) == 1
    assert sum(line.startswith("self-test, reference on cpu: 3 ops right") for line in lines) == 1


def test_doctor_fails_where_a_backend_does(capsys, attach):
    attach(broken_value)
    assert doctor.main(DoctorCommand()) == 1
    assert f"self-test, toy on cpu: {OP}: found the value" in " ".join(capsys.readouterr().out.split())
