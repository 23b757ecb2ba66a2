"""Every operation, backend, dtype and case against its definition in float64, outputs and gradients."""

import importlib

import op_definitions as definitions
import pytest
import torch
from op_accuracy import assert_no_less_accurate
from op_backends import on, on_tensors, place_id, rounds

from instructrl import ops
from instructrl.ops.cases import CASES

# Sampled tokens are not numbers to compare: test_ops_sampling.py.
SMALL = [case for case in CASES if not case.large and case.op != "sampling.sample_tokens"]


def public(op):
    family, function = op.split(".")
    return getattr(importlib.import_module(f"instructrl.ops.{family}"), function)


def flat(output, prefix="output"):
    """Named tensors of nested tuples and dicts."""
    if isinstance(output, torch.Tensor):
        return {prefix: output}
    items = output.items() if isinstance(output, dict) else enumerate(output)
    return {name: x for key, value in items for name, x in flat(value, f"{prefix}.{key}").items()}


def evaluate(function, arguments, gradients):
    """Outputs, and the gradients of a fixed random combination of those outputs that have one."""
    arguments = dict(arguments)
    for name in gradients:
        arguments[name] = arguments[name].detach().requires_grad_()
    outputs = flat(function(**arguments))
    generator = torch.Generator().manual_seed(0)
    total = 0.0
    for name, output in outputs.items():
        # The parts of the PPO loss are for reading; the definition's carry gradients that the operation's do not.
        if output.requires_grad and name in ("output", "output.0", "output.1") and "ppo_loss" not in function.__name__:
            total = total + (output * torch.randn(output.shape, generator=generator).to(output)).sum().double()
        elif output.requires_grad and name == "output.0":
            total = total + 1.7 * output.double()
    inputs = [arguments[name] for name in gradients]
    # Without a counted element the definition is a constant.
    known = isinstance(total, torch.Tensor)
    found = torch.autograd.grad(total, inputs, allow_unused=True) if known else [None] * len(inputs)
    for name, gradient in zip(gradients, found, strict=True):
        outputs[f"gradient of {name}"] = torch.zeros_like(arguments[name]) if gradient is None else gradient
    return outputs


def converted(arguments, dtype):
    return {
        name: on_tensors(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, x)
        for name, x in arguments.items()
    }


def _moved(x, generator):
    return x * (1 + 2**-12 * torch.rand(x.shape, generator=generator)).to(x.dtype) if x.is_floating_point() else x


def neighbours(definition, arguments, gradients, name):
    """The definition in float32 and float64 on inputs moved by less than the distance that cases keep from kinks."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        moved = {
            key: on_tensors(lambda tensor: _moved(tensor, generator), x)
            for key, x in converted(arguments, torch.float32).items()
        }
        truth = evaluate(definition, converted(moved, torch.float64), gradients)[name]
        yield evaluate(definition, moved, gradients)[name], truth


@pytest.mark.parametrize(("case", "backend", "device", "dtype"), rounds(SMALL), ids=place_id)
def test_case(case, backend, device, dtype):
    arguments = case.make(dtype)
    with ops.use_backend(backend):
        actual = on("cpu", evaluate(public(case.op), on(device, arguments), case.gradients))
    definition = getattr(definitions, case.op.split(".")[1])
    truth = evaluate(definition, converted(arguments, torch.float64), case.gradients)
    yardstick = evaluate(definition, converted(arguments, torch.float32), case.gradients)
    assert actual.keys() == truth.keys()
    for name in actual:
        if actual[name].dtype == torch.float64 and dtype != torch.float64:
            actual[name] = actual[name].float()  # Sums kept in float64 for their range, of float32 numbers.
        near = neighbours(definition, arguments, case.gradients, name)
        assert_no_less_accurate(actual[name], yardstick[name], truth[name], name=name, neighbours=near)
        if name.startswith("gradient"):
            assert actual[name].dtype == dtype
        elif actual[name].is_floating_point() and dtype != torch.float64 and "gradient" not in case.op:
            assert actual[name].dtype == torch.float32


def test_every_op_has_cases():
    assert {case.op for case in CASES} == set(ops.dispatch.OPS)
