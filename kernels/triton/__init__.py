"""The Triton backend: NVIDIA and AMD GPUs, and with TRITON_INTERPRET=1 the CPU, where it can be tested without one.

Nothing here imports Triton before it is known to be installed and to have something to run on.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from instructrl import kernels
from instructrl.ops import compiled, private_ops

PREFIX = "_triton_"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Private op -> the module that launches it.
_FAMILIES = {
    "pairwise_ranking_loss": "ranking",
    "paired_comparison_loss": "ranking_models",
    "plackett_luce_loss": "ranking_models",
    "token_logprobs": "logprobs",
    "token_logprobs_backward": "logprobs",
    "token_logprobs_backward_": "logprobs",
    "row_statistics": "row_statistics",
    "generalized_advantages": "advantages",
    "ppo_advantages": "advantages",
    "general_advantages": "general_advantages",
    "masked_whiten": "whitening",
    "group_whiten": "whitening",
    "group_advantages": "groups",
    "clipped_policy_loss": "ppo",
    "clipped_value_loss": "ppo",
    "ppo_loss": "ppo",
    "general_ppo_loss": "general_ppo",
    "sample_tokens": "sampling",
}


def _is_interpreted() -> bool:
    return importlib.import_module("triton").knobs.runtime.interpret


def why_not() -> str | None:
    """Why Triton cannot run here, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install triton; a CUDA build of torch brings it)"
    if not torch.cuda.is_available() and not _is_interpreted():
        return "torch finds no NVIDIA or AMD GPU (TRITON_INTERPRET=1 interprets the kernels on the CPU, for tests)"
    return None


def _on_device_of_first(launch: Callable[..., Any]) -> Callable[..., Any]:
    """Triton launches on the current device, which need not be where the tensors are."""

    @functools.wraps(launch)
    def on_device(*args: Any) -> Any:
        # The first argument may be absent.
        first = next(x for x in args if x is not None)
        if first.get_device() == torch.cuda.current_device():
            return launch(*args)
        with torch.cuda.device(first.device):
            return launch(*args)

    return on_device


def launches() -> dict[str, Callable[..., Any]]:
    """The functions behind the private ops, by name. They need Triton and no GPU before they are called."""
    return {name: getattr(importlib.import_module(f"{__name__}.{family}"), name) for name, family in _FAMILIES.items()}


def _load() -> None:
    missing = why_not()
    if missing is not None:
        kernels.report_missing("triton", missing)
        return
    found, version = launches(), importlib.import_module("triton").__version__
    if _is_interpreted():
        device, key, about = "cpu", "CPU", f"triton {version}, interpreted"
    else:
        device, key, about = "cuda", "CUDA", f"triton {version}"
        found = {name: _on_device_of_first(launch) for name, launch in found.items()}
    private_ops.define(PREFIX, private_ops.SCHEMAS, found, (key,))
    # Interpreted kernels are for tests: chosen when forced, never unasked.
    devices = () if device == "cpu" else (device,)
    compiled.attach("triton", prefix=PREFIX, dtypes={device: DTYPES}, devices=devices, about=about)


_load()
