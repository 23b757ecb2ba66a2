"""Start torchrun as a shell would."""

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


def torchrun(count: int, *program: str) -> subprocess.CompletedProcess:
    """A job to its end, on a machine that has examined no network yet. A hang fails by the timeout."""
    with tempfile.TemporaryDirectory() as cache:
        return subprocess.run(
            command(count, *program),
            env={**environment(), "XDG_CACHE_HOME": cache},
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
