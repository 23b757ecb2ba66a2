"""What the numbers are taken on, and where results about it go. Imports neither torch nor anything of ours."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.core.tables import RESULTS

ROOT = RESULTS.parents[1]
SCRATCH = ROOT / "build" / "gpu"
MACHINE = """
import json, platform, sys
import torch
if not torch.cuda.is_available() or torch.version.cuda is None:
    sys.exit(f"torch {torch.__version__} sees no NVIDIA GPU")
found = torch.cuda.get_device_properties(0)
print(json.dumps({
    "gpu": found.name, "multiprocessors": found.multi_processor_count, "memory_bytes": found.total_memory,
    "capability": [found.major, found.minor], "torch": torch.__version__, "cuda": torch.version.cuda,
    "python": platform.python_version(),
}))
"""


def gpu() -> dict[str, Any]:
    """The GPU and its software, asked in a process of its own. RuntimeError where there is none."""
    try:
        done = subprocess.run([sys.executable, "-c", MACHINE], capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired as why:
        raise RuntimeError(f"asking torch for a GPU: {why}") from None
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def folder_name(machine: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")


def results_folder(asked: Path | None, machine: str) -> Path:
    """The first that can be written: what is asked for, what OUT names, the machine's. RuntimeError where none can."""
    named = [Path(os.environ["OUT"])] if os.environ.get("OUT") else []
    for folder in [*([asked] if asked else []), *named, RESULTS / folder_name(machine), SCRATCH / "results"]:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f"{os.getpid()}.tmp"
            probe.write_text("", encoding="utf-8")
            probe.unlink()
            return folder.resolve()
        except OSError as error:
            print(f"gpu: cannot write results to {folder}: {error}", file=sys.stderr)
    raise RuntimeError("no folder for results can be written")
