"""From the private ops of a compiled backend to implementations of the public ones: autograd around them, attachment.

Backends register private ops (`private_ops.SCHEMAS`) and call `attach`. What is here is the same for all of them.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from instructrl import kernels
from instructrl.ops import checks, compiled_linear, private_ops
from instructrl.ops.compiled import advantages, candidates, logprobs, ppo, ranking, sampling, statistics, vocab_shards

_IMPLEMENTATIONS: dict[str, Callable[[str], Callable[..., Any]]] = {
    **ranking.IMPLEMENTATIONS,
    **logprobs.IMPLEMENTATIONS,
    **candidates.IMPLEMENTATIONS,
    **statistics.IMPLEMENTATIONS,
    **vocab_shards.IMPLEMENTATIONS,
    **advantages.IMPLEMENTATIONS,
    **ppo.IMPLEMENTATIONS,
    **sampling.IMPLEMENTATIONS,
    **compiled_linear.IMPLEMENTATIONS,
}

# Their other tensors, stats and uniform numbers, may be float64 on every device.
_AUXILIARY_AFTER_FIRST = ("advantages.masked_whiten", "sampling.sample_tokens")


def attach(
    backend: str,
    *,
    prefix: str,
    dtypes: Mapping[str, Collection[torch.dtype]],
    devices: tuple[str, ...],
    about: str = "",
    no_code: Callable[[int], str | None] = lambda index: None,
) -> None:
    """Attach a backend whose private ops are registered.

    prefix: of its private ops. dtypes: those it computes with, by device type. devices: the device types where it is
    chosen unasked. about: as in `kernels.attach`. no_code: why it cannot run on the GPU of an index, or None.
    """
    private_ops.define_fakes(prefix, private_ops.FAKES)
    compiled_linear.define(prefix)
    candidates.define(prefix)
    statistics.define(prefix)
    vocab_shards.define(prefix)

    def implementation(op: str) -> kernels.Implementation:
        data = slice(1) if op in _AUXILIARY_AFTER_FIRST else slice(None)
        return kernels.Implementation(
            function=_IMPLEMENTATIONS[op](prefix), unsupported=lambda *args: _unsupported(dtypes, no_code, args[data])
        )

    found = {op: implementation(op) for op in _IMPLEMENTATIONS}
    kernels.attach(backend, devices=devices, implementations=found, about=about)


def _unsupported(
    dtypes: Mapping[str, Collection[torch.dtype]], no_code: Callable[[int], str | None], args: tuple[Any, ...]
) -> str | None:
    device_type = args[0].device.type
    accepted = dtypes.get(device_type)
    if accepted is None:
        return f"found device {device_type}, accepted are {', '.join(dtypes)}"
    if len(accepted) == len(checks.FLOATING):
        return None
    for x in args:
        # A 0-dim tensor is a denominator, which may be float64 everywhere.
        if isinstance(x, Tensor) and x.dtype in checks.FLOATING and x.dim() > 0 and x.dtype not in accepted:
            return f"found dtype {x.dtype} on {device_type}, accepted are {', '.join(map(str, accepted))}"
    return no_code(args[0].get_device()) if device_type == "cuda" else None
