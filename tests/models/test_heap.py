"""Memory that is freed between tensors that stay goes back to the system, for a large network on a CPU."""

import subprocess
import sys

import pytest
from torch import nn

from instructrl.models import heap

# Large tensors between small ones that stay, in a process whose C library has come to keep large ones in its heap.
_PROGRAM = """
import os
import torch
from benchmarks.core.memory import resident_bytes
from instructrl.models import heap

heap.OF_A_NETWORK = 1
torch.set_num_threads(1)
for asked, size in ((False, 2**19), (True, 2**19), (False, 2**21), (True, 2**21)):
    if os.fork() == 0:
        torch.ones(2**23 - 1024)
        assert not asked or heap.give_back_large(torch.nn.Linear(1, 1))
        kept, freed = [], []
        for _ in range(100):
            freed.append(torch.ones(size))
            kept.append(torch.ones(2**15))
        before = resident_bytes()
        freed.clear()
        if size * 4 < heap.LARGE:
            heap.give_back()
        print(before - resident_bytes(), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_what_is_freed_between_what_stays_goes_back():
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    small_unasked, small, large_unasked, large = map(int, done.stdout.split())
    assert small_unasked < 20 * 2**20
    assert small >= 190 * 2**20
    assert large_unasked < 20 * 2**20
    assert large >= 790 * 2**20


def test_small_networks_and_the_environment_are_left_alone(monkeypatch):
    network = nn.Linear(8, 8)
    assert not heap.give_back_large(network)
    monkeypatch.setattr(heap, "OF_A_NETWORK", 1)
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "4194304")
    assert not heap.give_back_large(network)
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=4194304")
    assert not heap.give_back_large(network)
