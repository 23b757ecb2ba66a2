"""What happens on the CPU to the memory of tensors that are freed.

glibc puts tensors of up to 32 MiB side by side into a heap. What a backward pass frees there is in pieces, between
gradients and moments that stay, and the next pass finds no room for its own: the process grows by a half of what its
passes keep. The heap can give its free pages back, and a tensor with pages of its own gives them back at once; both are
paid for where pages are had anew, and cleared. So the heap does it after each backward pass, and only tensors that are
larger than most of what a pass keeps have pages of their own; small networks would feel either.
"""

import ctypes
import os
from functools import cache

from torch import nn

from instructrl.models.base import named_weights

# glibc's number of the setting, from its malloc.h.
_M_MMAP_THRESHOLD = -3
# Bytes of a tensor with pages of its own, and of the weights of a network from which on that pays.
LARGE, OF_A_NETWORK = 2**22, 2**28
_asked = False


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def give_back_large(network: nn.Module) -> bool:
    """Let what a large network on the CPU frees go back to the system, from here on in this process; returns whether.

    Large tensors have pages of their own, and `give_back` does something. Where the environment has set a threshold,
    and where the C library has no such setting, nothing is done.
    """
    global _asked
    set_already = "MALLOC_MMAP_THRESHOLD_" in os.environ or "mmap_threshold" in os.environ.get("GLIBC_TUNABLES", "")
    held = sum(x.nbytes for _, x in named_weights(network) if x.device.type == "cpu")
    mallopt = getattr(_libc(), "mallopt", None)
    if set_already or mallopt is None or held < OF_A_NETWORK:
        return False
    _asked = bool(mallopt(_M_MMAP_THRESHOLD, LARGE))
    return _asked


def give_back() -> None:
    """After a backward pass, or the use of a network that was whole for a while: what was freed in the heap goes back
    to the system, if `give_back_large` said yes."""
    if _asked:
        _libc().malloc_trim(0)
