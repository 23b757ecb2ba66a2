"""Environments with a host in it: virtual environments that see the packages of this one and add what a host needs."""

import hashlib
import subprocess
import sys
import sysconfig
from pathlib import Path

from benchmarks.core.machine import ROOT

FOLDER = ROOT / ".venv" / "hosts"
REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "trl": ("trl==1.16.0",),
}
"""By host, as it was tried."""


def newest(requirement: str) -> str:
    """Without its version."""
    return requirement.partition("==")[0]


def environment(host: str, *, pinned: bool = True) -> str:
    """The interpreter of a host's environment, made where there is none. Raises RuntimeError where pip fails."""
    wanted = [x if pinned else newest(x) for x in REQUIREMENTS[host]]
    folder = FOLDER / (host if pinned else f"{host}-newest")
    python, stamp = folder / "bin" / "python", folder / "installed"
    digest = hashlib.sha256("\n".join(wanted).encode()).hexdigest()
    if pinned and stamp.exists() and stamp.read_text(encoding="utf-8") == digest:
        return str(python)
    _run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)])
    # Their .pth files count too: an editable installation is one.
    own = Path(sysconfig.get_path("purelib"))
    site = folder / "lib" / own.parent.name / "site-packages"
    (site / "own.pth").write_text(f"import site; site.addsitedir({str(own)!r})\n", encoding="utf-8")
    if wanted:
        _run([sys.executable, "-m", "pip", "--python", str(python), "install", "-q", *wanted])
    stamp.write_text(digest, encoding="utf-8")
    return str(python)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: ended with {done.returncode}: {done.stderr[-2000:]}")
