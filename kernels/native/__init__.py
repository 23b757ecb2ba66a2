"""The compiled backend: C++ on the CPU, CUDA C++ on NVIDIA GPUs.

Importing it loads `instructrl._C`, which registers the private ops, and on a CUDA build of torch the library
`_C_cuda` beside it.
"""

import importlib.util
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
        kernels.report_missing(
            "native", "instructrl._C is not here: instructrl was installed without a C++ compiler (g++ or clang++)"
        )
        return
    module = importlib.import_module("instructrl._C")
    dtypes = {"cpu": checks.FLOATING}
    library = _cuda_library()
    if library is not None:
        torch.ops.load_library(str(library))
        dtypes["cuda"] = _ON_GPU
    about = _about(module.build_info(), library)
    compiled.attach("native", prefix=PREFIX, dtypes=dtypes, devices=tuple(dtypes), about=about)


_load()
