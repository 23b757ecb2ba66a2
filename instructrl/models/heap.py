"""What happens on the CPU to the memory of a tensor that is freed.

glibc puts tensors of up to 32 MiB side by side into a heap. What a backward pass frees there is in pieces, between
gradients and moments that stay, and the next pass finds no room for its own: the process grows by a half of what its
passes keep. A tensor with pages of its own gives them back; they are to be had anew, and cleared, for the next one,
which small networks would feel.
"""

import ctypes
import os

from torch import nn

from instructrl.models.base import named_weights

# glibc's number of the setting, from its malloc.h.
_M_MMAP_THRESHOLD = -3
# Bytes of a tensor with pages of its own, and of the weights of a network from which on that pays.
LARGE, OF_A_NETWORK = 2**20, 2**28


def give_back_large(network: nn.Module) -> bool:
    """Let large tensors of this process have pages of their own, for a large network on the CPU; returns whether.

    Where the environment has set it, and where the C library has no such setting, nothing is done.
    """
    set_already = "MALLOC_MMAP_THRESHOLD_" in os.environ or "mmap_threshold" in os.environ.get("GLIBC_TUNABLES", "")
    held = sum(x.nbytes for _, x in named_weights(network) if x.device.type == "cpu")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_already or mallopt is None or held < OF_A_NETWORK:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, LARGE))
