"""Builds what is compiled in the package. Metadata: pyproject.toml.

`_C_cpu.so` (C++) and, where there is a CUDA compiler to use, `_C_cuda.so` are libraries that torch loads: they have
nothing of Python in them and torch's stable interface alone, so a wheel is for every Python and every torch that is
promised. Builds in place (`pip install -e`, `build_ext --inplace`) make `instructrl._C` too, a module for one Python,
where pybind11 is.

INSTRUCTRL_BUILD_CUDA=1 builds the CUDA kernels although torch is a CPU build (nvcc is enough), 0 leaves them out.
INSTRUCTRL_CUDA_ARCHITECTURES="80 90a" builds them for other GPUs. CXX and NVCC name the compilers.
Without a C++ compiler the package installs and runs on its references.
"""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
SOURCES = ROOT / "csrc"
LIBRARY, MODULE, CUDA_LIBRARY = "instructrl._C_cpu", "instructrl._C", "instructrl._C_cuda"
# -ffp-contract=off: the branch a clipped loss takes must not depend on where a compiler fuses.
CXX_FLAGS = "-std=c++17 -O3 -fPIC -fvisibility=hidden -ffp-contract=off -Wall -Wextra -Wno-psabi"
CUDA_ARCHITECTURES = ("80", "90a", "100")
NVCC_FLAGS = "-std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden"


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


setup(ext_modules=extensions(), cmdclass={"build_ext": NinjaBuild, "bdist_wheel": LibraryWheel})
