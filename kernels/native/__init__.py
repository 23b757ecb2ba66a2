"""The compiled backend: C++ on the CPU, CUDA C++ on NVIDIA GPUs.

Importing it loads `instructrl._C`, which registers the private ops, and on a CUDA build of torch the library
`_C_cuda` beside it.
"""

import functools
import importlib.util
import re
from pathlib import Path
from typing import Any

import torch

from instructrl import kernels
from instructrl.ops import checks, compiled

PREFIX = "_native_"
_ON_GPU = (torch.float32, torch.bfloat16, torch.float16)


def _cuda_library() -> Path | None:
    """The CUDA library where torch can load it: it is built for CUDA and the library is here."""
    found = importlib.util.find_spec("instructrl._C")
    assert found is not None
    assert found.origin is not None
    library = Path(found.origin).with_name("_C_cuda.so")
    return library if torch.version.cuda and library.exists() else None


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


def _about(info: dict[str, Any], library: Path | None) -> str:
    cpu = f"{info['compiler']}, built with torch {info['torch']}, {info['instruction_set']} in use"
    others = f"of {', '.join(info['instruction_sets'])}"
    cuda = f"CUDA kernels by {info['cuda_compiler']} for {info['cuda_architectures']}"
    if not info["cuda_compiler"]:
        cuda = "no CUDA kernels: built without nvcc or for a CPU torch (INSTRUCTRL_BUILD_CUDA=1 builds them)"
    elif library is None:
        cuda += ", not loaded: torch is a CPU build"
    return f"{cpu} ({others}); {cuda}"


def _load() -> None:
    if importlib.util.find_spec("instructrl._C") is None:
        why = "instructrl._C is not here: there was no C++ compiler when instructrl was installed"
        kernels.report_missing("native", f"{why}; install g++ or clang++, then instructrl again")
        return
    module = importlib.import_module("instructrl._C")
    dtypes = {"cpu": checks.FLOATING}
    library = _cuda_library()
    if library is not None:
        torch.ops.load_library(str(library))
        dtypes["cuda"] = _ON_GPU
    info = module.build_info()

    @torch.compiler.assume_constant_result
    @functools.cache
    def no_code(index: int) -> str | None:
        capability = torch.cuda.get_device_capability(index)
        if code_for(capability, info["cuda_architectures"]):
            return None
        found = f"found a GPU of compute capability {capability[0]}.{capability[1]}"
        return f"{found}, built for {info['cuda_architectures']} (INSTRUCTRL_CUDA_ARCHITECTURES builds for others)"

    about = _about(info, library)
    compiled.attach("native", prefix=PREFIX, dtypes=dtypes, devices=tuple(dtypes), about=about, no_code=no_code)


_load()
