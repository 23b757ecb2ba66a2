"""Start torchrun as a shell would."""

import functools
import os
import subprocess
import sys
import tempfile


def command(count: int, *program: str) -> list[str]:
    """The command line of a job of `count` processes on this machine."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), *program]


def environment() -> dict[str, str]:
    """One thread a process: tests run beside others."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@functools.cache
def _cache() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()


def torchrun(count: int, *program: str) -> subprocess.CompletedProcess:
    """A job to its end. A hang fails by the timeout.

    What it finds of networks is kept for the jobs behind it: the first that meets a network examines it.
    """
    return subprocess.run(
        command(count, *program),
        env={**environment(), "XDG_CACHE_HOME": _cache().name},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
