"""The compiled backend: C++ on the CPU, CUDA C++ on NVIDIA GPUs.

Importing it loads the library `_C_cpu.so`, which registers the private ops, and on a CUDA build of torch `_C_cuda.so`.
"""

import functools
import re

import torch
from instructrl.kernels.native import library

from instructrl import kernels
from instructrl.ops import checks, compiled

PREFIX = "_native_"
_ON_GPU = (torch.float32, torch.bfloat16, torch.float16)


def code_for(capability: tuple[int, int], architectures: str) -> bool:
    """Whether a GPU can run what was built. architectures: such as "sm_80 sm_90a sm_100", with PTX of the last.

    Machine code runs on GPUs of the same major version that are not older, and with an `a` on that one alone; PTX is
    compiled for newer ones.
    """
    built = [re.fullmatch(r"sm_(\d+)(\d)(a?)", name) for name in architectures.split()]
    places = [((int(x[1]), int(x[2])), bool(x[3])) for x in built if x is not None]
    for arch, exact in places:
        if arch == capability or (not exact and arch[0] == capability[0] and arch[1] < capability[1]):
            return True
    return bool(places) and not places[-1][1] and places[-1][0] < capability


def _about(info: dict[str, str], with_cuda: bool) -> str:
    cpu = f"{info['compiler']}, built with torch {info['torch']}, {info['instruction_set']} in use"
    others = f"of {', '.join(info['instruction_sets'].split())}"
    cuda = f"CUDA kernels by {info['cuda_compiler']} for {info['cuda_architectures']}"
    if not info["cuda_compiler"]:
        cuda = "no CUDA kernels: built without nvcc or for a CPU torch (INSTRUCTRL_BUILD_CUDA=1 builds them)"
    elif not with_cuda:
        cuda += ", not loaded: torch is a CPU build"
    return f"{cpu} ({others}); {cuda}"


def _load() -> None:
    if not library.CPU.exists():
        why = f"{library.CPU.name} is not here: there was no C++ compiler when instructrl was installed"
        kernels.report_missing("native", f"{why}; install g++ or clang++, then instructrl again")
        return
    library.load(library.CPU)
    info = library.build_info()
    dtypes = {"cpu": checks.FLOATING}
    # It looks for symbols that a CPU build of torch does not have.
    with_cuda = bool(torch.version.cuda) and library.CUDA.exists()
    if with_cuda:
        library.load(library.CUDA)
        dtypes["cuda"] = _ON_GPU

    @torch.compiler.assume_constant_result
    @functools.cache
    def no_code(index: int) -> str | None:
        capability = torch.cuda.get_device_capability(index)
        if code_for(capability, info["cuda_architectures"]):
            return None
        found = f"found a GPU of compute capability {capability[0]}.{capability[1]}"
        return f"{found}, built for {info['cuda_architectures']} (INSTRUCTRL_CUDA_ARCHITECTURES builds for others)"

    about = _about(info, with_cuda)
    compiled.attach("native", prefix=PREFIX, dtypes=dtypes, devices=tuple(dtypes), about=about, no_code=no_code)


_load()
