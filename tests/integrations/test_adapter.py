"""Adapters on a host that is made here: what is replaced, what is left alone and why, and how all of it goes back."""

import importlib
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch

from instructrl.integrations import HOSTS
from instructrl.integrations.adapter import Adapter, AdapterError, Replacement, facts
from instructrl.integrations.selfcheck import Example

PARTS = """
import torch

def scaled(x, factor=2.0):
    return x * factor

def halved(x):
    return x / 2

class Loss:
    @staticmethod
    def forward(x):
        return x.square().sum()

class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor=1.0):
        ctx.save_for_backward(x)
        ctx.factor = factor
        return factor * x**3

    @staticmethod
    def backward(ctx, grad):
        return 3 * ctx.factor * grad * ctx.saved_tensors[0].square(), None

cubed = Cube.apply
"""


@pytest.fixture
def host(tmp_path, monkeypatch):
    """The package `somehost` 1.0, with a module that has imported `scaled` under another name."""
    package = tmp_path / "somehost"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text(PARTS)
    for name in ("early", "late"):
        (package / f"{name}.py").write_text("from somehost.parts import scaled as times\n")
    information = tmp_path / "somehost-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: somehost\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("somehost.early")
    yield importlib.import_module("somehost.parts")
    for name in [name for name in sys.modules if name.split(".")[0] == "somehost"]:
        del sys.modules[name]


def vectors(draw):
    return [Example((draw.normal(5, grad=True),))]


def row(host, name, ours, **others):
    owner = host
    for part in name.split("."):
        owner = getattr(owner, part)
    found = facts(owner)
    given = {"signature": found.signature, "sources": (found.source,), "examples": vectors, **others}
    return Replacement(name=f"somehost.parts:{name}", stand_in=lambda own: ours, **given)


def adapter(*rows, tried=("1.0",)):
    return Adapter(host="somehost", distribution="somehost", package="somehost", tried=tried, replacements=rows)


def our_scaled(x, factor=2.0):
    return factor * x


def our_halved(x):
    return 0.5 * x


def our_cube(x, factor=1.0):
    return factor * x**3


def our_square(x):
    return (x * x).sum()


def test_every_name_of_a_function_is_replaced_and_put_back(host, capsys):
    own, forward = host.scaled, vars(host.Loss)["forward"]
    given = adapter(row(host, "scaled", our_scaled), row(host, "Loss.forward", staticmethod(our_square)))
    report = given.install(strict=True)
    late = importlib.import_module("somehost.late")
    assert sys.modules["somehost.early"].times is late.times is host.scaled is our_scaled
    assert host.Loss.forward is our_square
    assert not report.problems
    assert "2 of 2 functions replaced" in capsys.readouterr().err
    assert given.install() is report
    assert capsys.readouterr().err == ""
    given.uninstall()
    given.uninstall()
    assert sys.modules["somehost.early"].times is late.times is host.scaled is own
    assert vars(host.Loss)["forward"] is forward


def test_an_official_place_is_used_where_there_is_one(host):
    registry = {}

    def put(ours):
        registry["fast"] = ours
        return lambda: registry.pop("fast") and None

    own = host.scaled
    given = adapter(row(host, "scaled", our_scaled, put=put))
    given.install()
    assert registry == {"fast": our_scaled}
    assert host.scaled is own
    given.uninstall()
    assert registry == {}


def test_what_people_name_is_checked_and_put_nowhere(host, capsys):
    own = host.scaled
    given = adapter(row(host, "scaled", our_scaled, named="ours.scaled"), row(host, "halved", our_halved))
    given.install(strict=True)
    assert host.scaled is own
    printed = capsys.readouterr().err
    assert "1 of 1 functions replaced" in printed
    assert "  to name     ours.scaled for somehost.parts:scaled" in printed
    given.uninstall()
    broken = adapter(row(host, "scaled", wrong_gradient, named="ours.scaled"))
    assert "to name" not in str(broken.examine())
    assert "differs by" in str(broken.examine())


def wrong_gradient(x, factor=2.0):
    return factor * x.detach() + 0.0 * x


BROKEN = [
    ({"name": "somehost.parts:gone"}, "cannot be had here: AttributeError"),
    ({"name": "somehost.gone:scaled"}, "cannot be had here: ModuleNotFoundError"),
    ({"signature": "(x, factor)"}, r"found signature (x, factor=2.0), tried is (x, factor)"),
    ({"sources": ("000000000000",)}, "its source is not the one that was tried (found digest "),
    ({"stand_in": lambda own: lambda x: 2.001 * x}, "example 0, result 0: differs by 0.00"),
    ({"stand_in": lambda own: wrong_gradient}, "example 0, result 1: differs by 2, accepted is "),
    ({"stand_in": lambda own: lambda x: (2 * x).double()}, "result 0: dtype torch.float64, not torch.float32"),
    ({"stand_in": lambda own: lambda x: (2 * x)[None]}, "example 0: shapes [(1, 5), (5,)], not [(5,), (5,)]"),
    ({"stand_in": lambda own: lambda x: x / 0 * 0}, "example 0, result 0: differs by inf"),
    ({"stand_in": lambda own: lambda x: x[7]}, "its self-check stopped with IndexError: "),
]


@pytest.mark.parametrize(("changes", "why"), BROKEN)
def test_what_is_not_as_it_was_tried_is_left_alone_and_named(host, changes, why, capsys):
    own = host.scaled
    given = adapter(replace(row(host, "scaled", our_scaled), **changes), row(host, "halved", our_halved))
    with pytest.raises(AdapterError) as refused:
        given.install(strict=True)
    assert why in str(refused.value)
    assert "\n" not in str(refused.value)
    report = given.install()
    assert [bool(found.why) for found in report.rows] == [True, False]
    assert why in report.rows[0].why
    assert why in capsys.readouterr().err
    assert host.scaled is own
    assert host.halved is our_halved
    given.uninstall()


def test_of_an_unknown_version_what_did_not_change_is_replaced(host, capsys):
    given = adapter(row(host, "scaled", our_scaled), tried=("0.8", "0.9"))
    with pytest.raises(AdapterError, match=r"somehost: found 1\.0, tried is"):
        given.install(strict=True)
    assert host.scaled is not our_scaled
    given.install()
    assert host.scaled is our_scaled
    assert "somehost: found 1.0, tried is 0.8 or 0.9" in capsys.readouterr().err
    given.uninstall()


def test_what_the_host_has_for_another_device_is_left_alone_and_no_problem(host, capsys):
    own = host.scaled
    given = adapter(row(host, "scaled", our_scaled, device="cuda"), row(host, "halved", our_halved))
    report = given.install(strict=True)
    assert [found.why for found in report.left_alone] == ["the host has it for cuda, checked was on cpu"]
    assert "left alone  somehost.parts:scaled: the host has it for cuda" in capsys.readouterr().err
    assert host.scaled is own
    given.uninstall()


def test_the_apply_of_an_autograd_function_is_known_by_its_class(host):
    found = facts(host.cubed)
    assert found.signature == "(ctx, x, factor=1.0)"
    assert found.source == facts(host.Cube, "forward").source
    given = adapter(row(host, "cubed", our_cube))
    given.install(strict=True)
    assert host.cubed is our_cube
    given.uninstall()
    assert host.cubed.__self__ is host.Cube


def test_without_the_host_nothing_is_replaced():
    given = Adapter(host="nohost", distribution="no-such-host", package="nohost", tried=("1",), replacements=())
    assert given.install().problems == ("nohost: found no installation",)
    given.uninstall()
    with pytest.raises(AdapterError, match="nohost: found no installation"):
        given.install(strict=True)


def test_a_self_check_leaves_the_random_numbers_and_the_modes_of_the_host(host):
    state = torch.get_rng_state()
    with torch.inference_mode():
        assert not adapter(row(host, "scaled", our_scaled)).examine().problems
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)


AROUND = {"autocast": torch.autocast("cpu", torch.bfloat16), "meta": torch.device("meta")}


@pytest.mark.parametrize("around", AROUND.values(), ids=list(AROUND))
def test_a_self_check_is_free_of_what_is_around_it(host, around):
    def scaled_by_product(x, factor=2.0):
        return x @ (2.0 * torch.eye(5))

    given = adapter(row(host, "scaled", scaled_by_product, examples=lambda draw: [Example((draw.normal(5, 5),))]))
    with around:
        assert not given.examine().problems


def test_threads_that_install_at_once_install_once(host):
    own = host.scaled

    def slow(own):
        time.sleep(0.1)
        return our_halved

    # The second one starts while the first checks, and would replace while the first does.
    given = adapter(row(host, "scaled", our_scaled), replace(row(host, "halved", our_halved), stand_in=slow))
    threads = [threading.Thread(target=given.install) for _ in range(2)]
    for each in threads:
        each.start()
        time.sleep(0.05)
    for each in threads:
        each.join()
    assert host.scaled is our_scaled
    given.uninstall()
    assert host.scaled is own


def test_importing_adapters_imports_no_host():
    names = ", ".join(f"instructrl.integrations.{name}" for name in HOSTS)
    script = f"import sys; before = set(sys.modules); import {names}; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-c", f"import torch, transformers; {script}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    roots = {name.split(".")[0] for name in done.stdout.split()}
    assert not roots & {"trl", "verl", "openrlhf", "nemo_rl", "torchtune", "torchao", "liger_kernel", "ray"}
