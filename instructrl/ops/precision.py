"""The precision of sums that are rounded once at their end."""

import torch


def widest(device: torch.device) -> torch.dtype:
    """float64; float32 where the device has nothing wider, as Apple's GPUs (MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64
