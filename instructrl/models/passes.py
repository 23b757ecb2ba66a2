"""How networks are run: precision of their matrix products, and what a forward pass keeps for the backward pass."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from instructrl.models.settings import PassConfig


def settled(passes: PassConfig, device: torch.device) -> PassConfig:
    """The same with what it leaves to the device decided."""
    if passes.weights is not None:
        return passes
    return replace(passes, weights="bfloat16" if device.type == "cuda" else "float32")


@contextmanager
def applied(passes: PassConfig, modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, these modules, whose weights `spread` has laid out, are run so, forward and backward.

    Raises ValueError where checkpoints are asked for and transformers marks no block of the network.
    """
    modules = list(modules)
    device = next(parameter.device for module in modules for parameter in module.parameters())
    # Without the cache: it would hold on to weights from before an optimiser step, and to those of an earlier
    # forward pass, whose gradients FSDP has already taken away.
    low = torch.autocast(device.type, torch.bfloat16, enabled=passes.products == "bfloat16", cache_enabled=False)
    with low, _checkpointed(modules) if passes.checkpoint_activations else nullcontext():
        yield


@contextmanager
def converted_once() -> Iterator[None]:
    """Inside, autocast converts each weight once. For passes without gradient, between which no weight changes: as many
    as a response has tokens."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(True)
    try:
        yield
    finally:
        torch.clear_autocast_cache()
        torch.set_autocast_cache_enabled(before)


@contextmanager
def _checkpointed(modules: Iterable[nn.Module]) -> Iterator[None]:
    """transformers' own switch needs training mode, in which a network may do more than it should here."""
    blocks = [
        block for module in modules for block in module.modules() if isinstance(block, GradientCheckpointingLayer)
    ]
    if not blocks:
        raise ValueError("checkpoint_activations: found a network without marked blocks, accepted is false")
    for block in blocks:
        block.forward = partial(_run_block, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the class's again


def _run_block(forward, *args, **kwargs):
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
