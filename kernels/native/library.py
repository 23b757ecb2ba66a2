"""The compiled libraries beside the package: where they are, loading them, and what they say of themselves.

They are plain libraries that `torch.ops.load_library` loads, so they are no modules and serve every version of Python.
"""

import ctypes
from pathlib import Path

import torch

import instructrl

FACTS = (
    "compiler",
    "torch",
    "torch_target",
    "instruction_sets",
    "instruction_set",
    "cuda_compiler",
    "cuda_architectures",
)
_FOLDER = Path(instructrl.__path__[0])
CPU, CUDA = _FOLDER / "_C_cpu.so", _FOLDER / "_C_cuda.so"


def load(path: Path) -> None:
    """Register the ops of a library. Raises OSError with the linker's words where it cannot be loaded."""
    torch.ops.load_library(str(path))


def build_info(path: Path = CPU) -> dict[str, str]:
    """How the library of the CPU was built, by the names of `FACTS`; csrc/bindings.cpp says what each is.

    Raises RuntimeError where INSTRUCTRL_CPU_ISA asks for what this machine cannot run.
    """
    ask = ctypes.CDLL(str(path)).instructrl_build_info
    ask.argtypes, ask.restype = [ctypes.c_char_p], ctypes.c_char_p
    found = {name: ask(name.encode()).decode() for name in (*FACTS, "refusal")}
    if refusal := found.pop("refusal"):
        raise RuntimeError(refusal)
    return found
