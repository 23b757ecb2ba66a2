"""Random numbers that depend only on the seed and on where they are used, so that a resumed run repeats them.

A sample keyed by (seed, episode, position) stays the same if rows leave the batch, if the batch is divided in another
way, and if a run is resumed; there is no generator state to save.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64: splitmix64's increment
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def keyed_uniforms(seed: int, episodes: Tensor, num_positions: int) -> Tensor:
    """Uniform numbers in [0, 1), one for each episode and position.

    episodes: [B] int64. Returns [B, num_positions] float32 with 24 random bits. The mixing function is splitmix64
    (Steele, Lea and Flood 2014), applied once for each part of the key.
    """
    key = _mix(torch.full_like(episodes, seed))
    key = _mix(key ^ episodes)[:, None]
    positions = torch.arange(num_positions, device=episodes.device)[None, :]
    bits = _shift_right(_mix(key ^ positions), 40)
    return bits.to(torch.float32) * 2.0**-24


def keyed_seed(seed: int, *parts: int) -> int:
    """A seed for a torch.Generator, from a seed and the place where it is used. Returns an int in [0, 2^63)."""
    key = torch.tensor([seed])
    for part in parts:
        key = _mix(key) ^ part
    return int(_shift_right(_mix(key), 1))


def keyed_generator(seed: int, *parts: int) -> torch.Generator:
    """A CPU generator in the state that belongs to this place."""
    return torch.Generator().manual_seed(keyed_seed(seed, *parts))


def take_disjoint(count: int, sizes: Sequence[int], seed: int) -> list[list[int]]:
    """Disjoint random subsets of `range(count)` of the given sizes. Raises ValueError where they do not fit."""
    if sum(sizes) > count:
        raise ValueError(f"sizes: found {list(sizes)}, which is {sum(sizes)} in all; accepted are up to {count}")
    order = torch.randperm(count, generator=keyed_generator(seed)).tolist()
    subsets, start = [], 0
    for size in sizes:
        subsets.append(order[start : start + size])
        start += size
    return subsets


def _mix(x: Tensor) -> Tensor:
    x = x + _GOLDEN
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    # int64 shifts keep the sign; the mask makes the shift the unsigned one that the mixing function means.
    return (x >> bits) & ((1 << (64 - bits)) - 1)
