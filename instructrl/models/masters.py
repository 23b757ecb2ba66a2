"""Weights in bfloat16, half of the bytes in every pass; of those that learn, a float32 master.

A weight is its master rounded to the nearest bfloat16. An optimiser steps the masters: most of its updates are smaller
than half the distance of two neighbours in bfloat16, and a weight in it would not move (Micikevicius et al. 2018,
arXiv:1710.03740, section 3.1). Gradients of several backward passes are added up in float32.
"""

import copy
import re
from typing import TypeVar

import torch
from torch import Tensor, nn

from instructrl.models.base import base_of
from instructrl.models.parts import replace

NetworkT = TypeVar("NetworkT", bound=nn.Module)

# Where a weight keeps its master and the handle of its hook. A deepcopy of the weight has neither.
_MASTER, _HOOK = "_instructrl_master", "_instructrl_hook"


def kept_parts(network: nn.Module) -> list[nn.Module]:
    """The modules with parameters of their own that stay in float32: our scalar heads, and what transformers keeps so
    in a model that it loads in bfloat16."""
    kept = {x for part in network.modules() for x in getattr(part, "_keep_in_fp32_modules_strict", None) or ()}
    if not kept:
        return []
    pattern = re.compile("|".join(re.escape(x).replace(r"\*", ".*") for x in sorted(kept)))
    found = []
    for prefix, part in network.named_modules():
        if any(pattern.search(f"{prefix}.{name}") for name, _ in part.named_parameters(recurse=False)):
            found.append(part)
    return found


def halved(network: nn.Module) -> list[nn.Parameter]:
    """What is in bfloat16 where weights are: every float32 parameter that is not kept, of a network whose weights are
    its own. Buffers are no parameters: rotary frequencies, and the constants of reward models, stay as they are."""
    if base_of(network) is not None:  # which has a dtype of its own, and what stands on it is small
        return []
    kept = {id(x) for part in kept_parts(network) for x in part.parameters(recurse=False)}
    return [x for x in network.parameters() if x.dtype == torch.float32 and id(x) not in kept]


def halve(network: nn.Module) -> None:
    """Round the weights, in place, of a network that does not learn."""
    restore(network)
    low = {id(x) for x in halved(network)}

    def rounded(parameter: nn.Parameter) -> nn.Parameter:
        if id(parameter) not in low:
            return parameter
        return nn.Parameter(parameter.detach().bfloat16(), requires_grad=parameter.requires_grad)

    replace(network, rounded)


def keep_masters(network: nn.Module) -> None:
    """Round the weights, in place, and keep a master of each."""
    restore(network)
    for parameter in halved(network):
        master = nn.Parameter(parameter.data, requires_grad=parameter.requires_grad)
        parameter.data = master.detach().bfloat16()
        vars(parameter)[_MASTER] = master
        if parameter.requires_grad:
            vars(parameter)[_HOOK] = parameter.register_post_accumulate_grad_hook(_hand_over)


def restore(network: nn.Module) -> None:
    """Put the masters, where there are any, back in the place of the weights."""
    for parameter in network.parameters():
        master = vars(parameter).pop(_MASTER, None)
        if master is not None:
            parameter.data = master.data
        if (hook := vars(parameter).pop(_HOOK, None)) is not None:
            hook.remove()


def _hand_over(weight: Tensor) -> None:
    """Its gradient to the master, added to what is there, after each backward pass."""
    master, gradient = vars(weight)[_MASTER], weight.grad
    assert gradient is not None  # the hook comes behind it
    if master.grad is None:
        master.grad = gradient.float()
    else:
        master.grad += gradient
    weight.grad = None


def learned(network: nn.Module) -> list[nn.Parameter]:
    """What an optimiser steps: the masters, and the parameters that have none."""
    return [vars(parameter).get(_MASTER, parameter) for parameter in network.parameters()]


def has_masters(network: nn.Module) -> bool:
    return any(_MASTER in vars(parameter) for parameter in network.parameters())


@torch.no_grad()
def round_masters(network: nn.Module) -> None:
    """Make the weights what the masters say."""
    for parameter in network.parameters():
        if (master := vars(parameter).get(_MASTER)) is not None:
            parameter.copy_(master)


def in_float32(network: NetworkT) -> NetworkT:
    """The network with the masters as its parameters, which it shares; itself where it has none.

    What is saved, averaged and kept in checkpoints. It takes no memory, and changes as the masters do.
    """
    if not has_masters(network):
        return network
    shared = {id(buffer): buffer for buffer in network.buffers()}
    shared |= {id(weight): vars(weight).get(_MASTER, weight) for weight in network.parameters()}
    return copy.deepcopy(network, shared)
