"""Builds what is compiled in the package. Metadata: pyproject.toml.

`_C_cpu.so` (C++) and, where there is a CUDA compiler to use, `_C_cuda.so` are libraries that torch loads: they have
nothing of Python in them and torch's stable interface alone, so a wheel is for every Python and every torch that is
promised. Builds in place (`pip install -e`, `build_ext --inplace`) make `instructrl._C` too, a module for one Python,
where pybind11 is.

`python setup.py hub_package --out DIR` writes the ops in the layout of a Hugging Face kernels package.

INSTRUCTRL_BUILD_CUDA=1 builds the CUDA kernels although torch is a CPU build (nvcc is enough), 0 leaves them out.
INSTRUCTRL_CUDA_ARCHITECTURES="80 90a" builds them for other GPUs. CXX and NVCC name the compilers.
Without a C++ compiler the package installs and runs on its references.
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
SOURCES = ROOT / "csrc"
LIBRARY, MODULE, CUDA_LIBRARY = "instructrl._C_cpu", "instructrl._C", "instructrl._C_cuda"
# -ffp-contract=off: the branch a clipped loss takes must not depend on where a compiler fuses.
CXX_FLAGS = "-std=c++17 -O3 -fPIC -fvisibility=hidden -ffp-contract=off -Wall -Wextra -Wno-psabi"
CUDA_ARCHITECTURES = ("80", "90a", "100")
NVCC_FLAGS = "-std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden"
HUB_PACKAGE = "instructrl_ops"
HUB_LIBRARY = '''"""The library of this build, which is loaded with the package: where it is, what it says of itself."""

import ctypes
import json
from pathlib import Path

from ..._ops import ops

FACTS = ("compiler", "torch", "torch_target", "instruction_sets", "instruction_set")
ROOT = Path(__file__).parents[2]
CPU = next(ROOT.glob("*.so"))
_BACKEND = json.loads((ROOT / "metadata.json").read_text(encoding="utf-8"))["backend"]
CUDA = CPU if _BACKEND["type"] == "cuda" else ROOT / "no CUDA kernels in this build"


def load(path):
    """Its ops are there since `ops` was imported."""
    assert ops is not None


def build_info(path=CPU):
    """Raises RuntimeError where INSTRUCTRL_CPU_ISA asks for what this machine cannot run."""
    ask = ctypes.CDLL(str(path)).instructrl_build_info
    ask.argtypes, ask.restype = [ctypes.c_char_p], ctypes.c_char_p
    if refusal := ask(b"refusal").decode():
        raise RuntimeError(refusal)
    archs = _BACKEND.get("archs", []) if _BACKEND["type"] == "cuda" else []
    names = ["sm_" + arch.replace(".", "").removesuffix("+PTX") for arch in archs]
    # Without PTX the last serves no newer GPU, which is what an "a" says.
    if names and not archs[-1].endswith("+PTX"):
        names[-1] = names[-1].rstrip("a") + "a"
    cuda = {"cuda_compiler": "nvcc" if names else "", "cuda_architectures": " ".join(names)}
    return {name: ask(name.encode()).decode() for name in FACTS} | cuda
'''


def cxx():
    """The command of the C++ compiler, or None."""
    wanted = os.environ.get("CXX")
    if wanted and shutil.which(shlex.split(wanted)[0]) is None:
        raise RuntimeError(
            f"CXX: found {wanted!r}, which is no program here; without CXX, g++ or clang++ is looked for"
        )
    return wanted or shutil.which("g++") or shutil.which("clang++")


def nvcc():
    """The CUDA compiler that is to be used, or None."""
    wanted = os.environ.get("INSTRUCTRL_BUILD_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise ValueError(f"INSTRUCTRL_BUILD_CUDA: found {wanted!r}, accepted are 0, 1 or nothing")
    homes = [os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH")]
    places = os.pathsep.join([*(f"{home}/bin" for home in homes if home), os.environ["PATH"], "/usr/local/cuda/bin"])
    found = os.environ.get("NVCC") or shutil.which("nvcc", path=places)
    if wanted == "1" and found is None:
        raise RuntimeError("INSTRUCTRL_BUILD_CUDA is 1 and nvcc was not found: put it on PATH or set NVCC")
    if wanted or found is None:
        return found if wanted == "1" else None
    import torch

    return found if torch.version.cuda else None


class NinjaBuild(build_ext):
    """Compiles an extension's sources side by side, and again only those that changed."""

    def finalize_options(self):
        super().finalize_options()
        if not self.inplace:
            self.extensions = [ext for ext in self.extensions if ext.name != MODULE]
            # What an earlier build in place left there would be packed.
            Path(self.get_ext_fullpath(MODULE)).unlink(missing_ok=True)

    def build_extension(self, ext):
        # Only here, so that a source distribution can be made, and metadata read, without torch.
        import ninja
        import torch

        folder = Path(self.build_temp).resolve() / ext.name
        folder.mkdir(parents=True, exist_ok=True)
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        make_rules = {LIBRARY: cpp_rules, MODULE: module_rules, CUDA_LIBRARY: cuda_rules}
        lines = make_rules[ext.name](torch)
        objects = []
        for source in ext.sources:
            objects.append(str(folder / (Path(source).stem + ".o")))
            lines.append(f"build {escaped(objects[-1])}: compile {escaped(ROOT / source)}")
        # The module is linked against the library, which is built before it and is found beside it.
        linked = [*objects, output.with_name("_C_cpu.so")] if ext.name == MODULE else objects
        lines += [f"build {escaped(output)}: link {' '.join(map(escaped, linked))}", ""]
        (folder / "build.ninja").write_text("\n".join(lines), encoding="utf-8")
        program = Path(ninja.BIN_DIR) / "ninja"
        subprocess.run([str(program), "-C", str(folder)], check=True)

    def get_ext_filename(self, fullname):
        if fullname.split(".")[-1] == MODULE.split(".")[-1]:
            return super().get_ext_filename(fullname)
        # A library is no Python module, so its name has no Python version in it.
        return os.path.join(*fullname.split(".")) + ".so"

    def get_export_symbols(self, ext):
        return []


class LibraryWheel(bdist_wheel):
    """A wheel for one platform and every Python."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


def escaped(path):
    """A path as ninja reads it."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def includes(torch):
    """Options for the folders of headers; those of torch do not warn."""
    return f'-I"{SOURCES}" -isystem "{Path(torch.__file__).parent / "include"}"'


def rules(compile_command, link_command):
    """The start of a ninja file."""
    return [
        "rule compile",
        f"  command = {compile_command} -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {link_command}",
    ]


def torch_libraries(torch, *names):
    """Options to link against torch, which is loaded before the extension is."""
    return " ".join([f'-L"{Path(torch.__file__).parent / "lib"}"', *(f"-l{name}" for name in names)])


def cpp_rules(torch):
    """How the library of the CPU is built."""
    compiler = nvcc()
    version = "" if compiler is None else cuda_version(compiler)
    built_for = "" if compiler is None else " ".join(f"sm_{x}" for x in architectures(compiler))
    texts = {
        "INSTRUCTRL_TORCH_VERSION": torch.__version__,
        "INSTRUCTRL_CUDA_COMPILER": version,
        "INSTRUCTRL_CUDA_ARCHITECTURES": built_for,
    }
    defines = " ".join(f"'-D{name}=\"{text}\"'" for name, text in texts.items())
    return rules(
        f"{cxx()} {CXX_FLAGS} {defines} {includes(torch)}",
        f"{cxx()} -shared -Wl,-soname,_C_cpu.so $in -o $out {torch_libraries(torch, 'torch', 'torch_cpu', 'c10')}",
    )


def module_rules(torch):
    """How the Python module is built."""
    import pybind11

    headers = [f'-isystem "{folder}"' for folder in (pybind11.get_include(), sysconfig.get_path("include"))]
    return rules(
        f"{cxx()} {CXX_FLAGS} {' '.join(headers)}",
        # ninja reads $$ as a dollar, the shell leaves it to the linker: the folder of the module.
        f"{cxx()} -shared $in -o $out '-Wl,-rpath,$$ORIGIN'",
    )


def cuda_version(compiler):
    """Such as "nvcc 13.0"."""
    text = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout
    return "nvcc " + text.partition("release ")[2].partition(",")[0]


def architectures(compiler):
    """Those that are asked for, else of ours those that this nvcc knows."""
    wanted = os.environ.get("INSTRUCTRL_CUDA_ARCHITECTURES", "").split()
    command = [compiler, "--list-gpu-arch"]
    known = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return wanted or [x for x in CUDA_ARCHITECTURES if f"compute_{x.rstrip('a')}" in known]


def cuda_rules(torch):
    """How the library of NVIDIA GPUs is built: for each architecture, and PTX from the last for those to come."""
    compiler = nvcc()
    found = architectures(compiler)
    targets = [f"-gencode arch=compute_{x},code=sm_{x}" for x in found]
    targets.append(f"-gencode arch=compute_{found[-1]},code=compute_{found[-1]}")
    # Static: a library that looked for libcudart would only load beside the CUDA that it was built with.
    return rules(
        f"{compiler} {NVCC_FLAGS} {' '.join(targets)} {includes(torch)}",
        f"{compiler} -shared -cudart static $in -o $out {torch_libraries(torch, 'torch', 'torch_cpu', 'c10')}",
    )


def extensions():
    """What can be built here, in the order in which it is."""
    if cxx() is None:
        print("instructrl: found neither g++ nor clang++: it will run on its references")
        return []
    found = [Extension(LIBRARY, sources("bindings.cpp", "older_glibc.cpp", "cpu/*.cpp"))]
    if importlib.util.find_spec("pybind11") is not None:
        found.append(Extension(MODULE, sources("python_module.cpp")))
    if nvcc() is not None:
        found.append(Extension(CUDA_LIBRARY, sources("older_glibc.cpp", "cuda/*.cu")))
    return found


def sources(*patterns):
    """Files of csrc/ by pattern."""
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in SOURCES.glob(pattern))


class HubPackage(Command):
    """Writes what kernel-builder (https://github.com/huggingface/kernels) makes a Hub kernel of."""

    user_options: ClassVar = [
        ("out=", None, "a folder that is not there yet"),
        ("repo-id=", None, "where it is to be uploaded"),
    ]

    def initialize_options(self):
        self.out = self.repo_id = None

    def finalize_options(self):
        if not self.out or Path(self.out).exists():
            raise ValueError(f"--out: found {self.out!r}, accepted is a folder that is not there yet")

    def run(self):
        out = Path(self.out)
        for name in sources("*.h", "**/*.h", "older_glibc.cpp", "cpu/*.cpp", "cuda/*.cu"):
            write(out / name, hub_cpp((ROOT / name).read_text(encoding="utf-8")))
        binding = hub_cpp((SOURCES / "bindings.cpp").read_text(encoding="utf-8"))
        write(out / "torch-ext/torch_binding.cpp", hub_binding(binding))
        package = out / "torch-ext" / HUB_PACKAGE
        folders = {"instructrl/ops": "ops", "instructrl/kernels": "kernels"}
        folders |= {f"kernels/{name}": f"kernels/{name}" for name in ("native", "triton")}
        for folder, place in folders.items():
            paths = [path for path in sorted((ROOT / folder).rglob("*.py")) if "ops/cases" not in path.as_posix()]
            for path in paths:
                target = package / place / path.relative_to(ROOT / folder)
                depth = len(target.relative_to(package).parts)
                write(target, hub_python(path.read_text(encoding="utf-8"), depth))
        write(package / "kernels/native/library.py", HUB_LIBRARY)
        names = re.findall(r'^    "(\w+)",$', (ROOT / "instructrl/ops/__init__.py").read_text(encoding="utf-8"), re.M)
        listed = "".join(f"    {name},\n" for name in names)
        quoted = "".join(f'    "{name}",\n' for name in names)
        exported = f"from .ops import (\n{listed})\n\n__all__ = [\n{quoted}]\n"
        write(package / "__init__.py", f'"""Operations of InstructRL, one module a family."""\n\n{exported}')
        write(out / "build.toml", hub_build(self.repo_id))
        write(out / "flake.nix", HUB_FLAKE)
        write(out / "CARD.md", HUB_CARD)
        write(out / "LICENSE", (ROOT / "LICENSE").read_text(encoding="utf-8"))


HUB_FLAKE = """{
  inputs.kernel-builder.url = "github:huggingface/kernels";
  outputs = { self, kernel-builder, ... }: kernel-builder.lib.genKernelFlakeOutputs { inherit self; path = ./.; };
}
"""
HUB_CARD = """---
library_name: kernels
license: apache-2.0
---

Losses, log-probabilities, advantages and sampling for training language models from human feedback, each with a PyTorch
reference beside kernels for the CPU and NVIDIA GPUs.
"""


def write(path, text):
    """A file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def hub_cpp(text):
    """C++ whose ops are in the namespace of one build, so that several builds can be loaded."""
    return re.sub(r"(STABLE_TORCH_LIBRARY\w*\()instructrl, ", r"\1TORCH_EXTENSION_NAME, ", text)


def hub_binding(text):
    """The declarations, with what `_ops.py` imports."""
    compiled = ("INSTRUCTRL_TORCH_VERSION", "INSTRUCTRL_CUDA_COMPILER", "INSTRUCTRL_CUDA_ARCHITECTURES")
    defines = "".join(f'#define {name} ""\n' for name in compiled).replace(' ""', " TORCH_VERSION", 1)
    head = f'#include <torch/headeronly/version.h>\n\n#include "registration.h"\n\n{defines}\n'
    return f"{head}{text}\nREGISTER_EXTENSION(TORCH_EXTENSION_NAME)\n"


def hub_python(text, depth):
    """Python that imports by relative names, so that it can lie anywhere, and that finds the namespace of its build."""
    text = re.sub(r"^( *)from instructrl\b\.?", rf"\1from {'.' * depth}", text, flags=re.M)
    found = f'from {"." * depth}_ops import add_op_namespace_prefix\n\nNAMESPACE = add_op_namespace_prefix("")[:-2]\n'
    return text.replace('NAMESPACE = "instructrl"\n', found)


def hub_build(repo_id):
    """The text of build.toml, edition 5. Strings and lists of JSON are TOML."""
    capabilities = [re.sub(r"(\d)a?$", r".\1", name) for name in CUDA_ARCHITECTURES]
    headers = sources("*.h", "cpu/**/*.h")
    framework = ["torch-ext/torch_binding.cpp", *sources("older_glibc.cpp", "cpu/*.cpp"), *headers]
    kernel = [*sources("cuda/*.cu", "cuda/*.h"), *sources("*.h")]
    general = {"name": HUB_PACKAGE.replace("_", "-"), "version": 0, "edition": 5, "license": "Apache-2.0"}
    general["backends"] = ["cpu", "cuda"]
    tables = {
        "general": general,
        "general.hub": {"repo-id": repo_id} if repo_id else {},
        "torch": {"include": ["csrc"], "src": framework, "cxx-flags": hub_flags()},
        "torch.stable-abi": {"cpu": "2.10", "cuda": "2.10"},
        "kernel.instructrl_cuda": {
            "backend": "cuda",
            "depends": ["torch"],
            "include": ["csrc"],
            "cuda-capabilities": capabilities,
            "src": kernel,
        },
    }
    lines = []
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items()), ""] if table else []
    return "\n".join(lines)


def hub_flags():
    """Those of CXX_FLAGS that decide what is computed and how fast."""
    return [flag for flag in CXX_FLAGS.split() if flag.startswith(("-O", "-f")) and flag != "-fPIC"]


COMMANDS = {"build_ext": NinjaBuild, "bdist_wheel": LibraryWheel, "hub_package": HubPackage}
setup(ext_modules=extensions(), cmdclass=COMMANDS)
