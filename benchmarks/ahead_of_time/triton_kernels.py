"""Compiles the Triton kernels for GPUs that are not here, and reports what each needs: a JSON line each, a `Row`.

    python -m benchmarks.ahead_of_time.triton_kernels [--arch 90 gfx942 ...] [--dtype bfloat16 ...]

The launch functions are called on small CPU tensors with the launch itself replaced by a recorder, so what is compiled
is what they launch: the same constants, warps and alignment of pointers.
"""

import importlib
import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from benchmarks.ahead_of_time.report import ROOT, WIDE, Row, run_tool
from benchmarks.core.tables import command
from instructrl.ops import ppo_settings
from instructrl.ops.ppo_settings import KLSettings, PolicySettings

ARCHITECTURES = ("80", "90", "100", "gfx942")
DTYPES = ("float32", "bfloat16", "float16")
_POINTER_TYPES = {
    **{torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16", torch.float16: "*fp16"},
    **{torch.int64: "*i64", torch.int32: "*i32", torch.bool: "*i1"},
}
Example = tuple[str, str, tuple[Any, ...]]
"""A function as MODULE.NAME; its label, or what that has behind the name; and what it is called with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One recorded launch: a kernel with its arguments by name, constants included, and its warps."""

    label: str
    kernel: Any
    arguments: Mapping[str, Any]
    num_warps: int

    @property
    def file(self) -> str:
        return str(Path(self.kernel.fn.__code__.co_filename).relative_to(ROOT))

    def source(self) -> ASTSource:
        """What Triton would compile for these arguments at run time."""
        signature, constants, attributes = {}, {}, {}
        for place, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            if parameter.is_constexpr or value is None:
                signature[parameter.name], constants[place,] = "constexpr", value
            elif isinstance(value, Tensor):
                signature[parameter.name] = _POINTER_TYPES[value.dtype]
                if value.data_ptr() % 16 == 0 and not parameter.do_not_specialize_on_alignment:
                    attributes[place,] = [["tt.divisibility", 16]]
            else:
                assert parameter.annotation_type, f"{self.label}: {parameter.name} has no type of its own"
                assert parameter.do_not_specialize, f"{self.label}: {parameter.name} compiles anew for some values"
                signature[parameter.name] = parameter.annotation_type
        return ASTSource(self.kernel, signature, constants, attributes)


def _ranking_examples(dtype: torch.dtype) -> Iterator[Example]:
    for responses in (9, 64):
        scores, flags = torch.zeros(8, responses, dtype=dtype), torch.ones(8, responses, responses, dtype=torch.bool)
        numbers, ranks = torch.zeros(8, responses, responses), torch.zeros(8, responses, dtype=torch.int64)
        yield "ranking.pairwise_ranking_loss", f" {responses}", (scores, flags)
        for davidson, tied in ((0.0, None), (1.0, flags)):
            arguments = (scores, flags, tied, numbers, numbers, 0.1, 0.1, davidson, 0.5, 0.0)
            name = f" {responses}" + (", davidson" if davidson else "")
            yield "ranking_models.paired_comparison_loss", name, arguments
        yield "ranking_models.plackett_luce_loss", f" {responses}", (scores, ranks)


def _ppo_examples(x: Tensor, mask: Tensor, count: Tensor) -> Iterator[Example]:
    """PPO's losses. x: of the dtype that is read."""
    yield "ppo.clipped_policy_loss", "", (x, x, x, mask, None, 0.2, 0.2)
    yield "ppo.clipped_value_loss", "", (x, x, x, mask, None, 0.2)
    for reference, kl_coef in ((None, 0.0), (x, 0.0), (x, 0.1)):
        name = "" if reference is None else f" with reference, kl_coef {kl_coef}"
        yield "ppo.ppo_loss", name, (*[x] * 6, mask, reference, count, 0.2, 0.2, 0.2, 0.1, kl_coef)
    flat, number = ppo_settings.flat, torch.zeros(mask.shape)
    clip = PolicySettings(dual_clip=3.0, log_ratio_clamp=20.0)
    k3 = KLSettings(coef=0.1, input_clamp=20.0, output_clamp=10.0, importance="full")
    sapo = PolicySettings(surrogate="sapo", ratio="sequence")
    absolute = KLSettings(estimator="abs", coef=0.1, straight_through=True, importance="constant")
    rest = (x, x, x, x, mask, x, number)
    alone = (x, None, None, None, mask, None, number)
    forms = {
        "dual clip, KL by k3": (x, x, None, *rest, count, flat(clip, kl=k3, kl_coef=0.1)),
        "sapo of sequences, KL by abs": (x, x, number, *rest, count, flat(sapo, kl=absolute, kl_coef=0.1)),
        "reinforce on policy": (x, None, None, *alone, count, flat(PolicySettings(surrogate="reinforce"))),
        "cispo": (x, x, None, *alone, count, flat(PolicySettings(surrogate="cispo"))),
        "values alone": (None, None, None, None, x, x, x, mask, None, number, count, flat()),
    }
    for name, arguments in forms.items():
        yield "general_ppo.general_ppo_loss", f" {name}", (*arguments, True)


def _logits_examples(dtype: torch.dtype) -> Iterator[Example]:
    logits, ids, number = torch.zeros(2, 50257, dtype=dtype), torch.zeros(2, dtype=torch.int64), torch.zeros(2)
    normalizers, mask, allowed_ids = torch.zeros(2, 2), torch.ones(2, dtype=torch.bool), torch.ones(50257) > 0
    # An own exponential and a division a class: capped logits, with ids that are not allowed.
    plain, capped = (None, 0.7, 0.0), (allowed_ids, 0.7, 0.02)
    for suffix, entropy, (allowed, *shape) in (
        ("", False, plain), ("_and_entropy", True, plain), (" capped", True, capped),
    ):  # fmt: skip
        saved = (number,) * 3 if entropy else (None, number, None)
        yield "logprobs.token_logprobs", suffix, (logits, ids, mask, allowed, *shape, entropy)
        backward = (logits, ids, mask, allowed, normalizers, *saved, *shape)
        yield "logprobs.token_logprobs_backward", f"token_logprobs{suffix}_backward", backward
    padded = torch.zeros(2, 50264, dtype=dtype)[:, :50257]
    arguments = (padded, ids, mask, None, normalizers, None, number, None, 0.7, 0.0)
    yield "logprobs.token_logprobs_backward", " other alignment", arguments
    for suffix, (allowed, *shape) in (("", plain), (" capped", capped)):
        yield "row_statistics.row_statistics", suffix, (logits, ids, mask, allowed, normalizers, *shape)
    yield "sampling.sample_tokens", "", (logits, number, *plain)
    yield "sampling.sample_tokens", " capped", (logits, number, *capped)
    yield "sampling.sample_tokens", " aligned", (torch.zeros(2, 50304, dtype=dtype), number, *plain)


def _advantage_examples(dtype: torch.dtype) -> Iterator[Example]:
    """The last two under settings: of given rewards, and all that can be together."""
    for length in (1024, 1023, 16384):
        row, mask = torch.zeros(1, length, dtype=dtype), torch.ones(1, length, dtype=torch.bool)
        yield "advantages.generalized_advantages", f" {length}", (row, row, mask, 1.0, 0.95, None)
        fused = (row, row, row, torch.zeros(1), mask, 0.02, 1.0, 0.95, None)
        yield "advantages.ppo_advantages", f" {length}", fused
    flat, mask, offsets = torch.zeros(4096, dtype=dtype), torch.ones(4096) > 0, torch.tensor([0, 4096]).int()
    packed = (flat, flat, flat, torch.zeros(1), mask, 0.02, 1.0, 0.95, offsets)
    yield "advantages.ppo_advantages", " packed", packed
    rows, flat = torch.zeros(2, 1024, dtype=dtype), torch.zeros(2048, dtype=dtype)
    number, rates, offsets = torch.zeros(2), torch.zeros(2, 3, dtype=torch.float64), torch.tensor([0, 1024, 2048])
    given = (rows, rows == 0, rows, None, None, None, rows == 0, rows, None, None, None)
    arguments = (*given, 0.0, 0, math.inf, math.inf, 1.0, 0.95, 0.95, False, False)
    yield "general_advantages.general_advantages", "generalized_advantages with ends", arguments
    made = (flat, flat == 0, None, flat, flat, number, flat == 0, None, number, rates, offsets)
    everything = (*made, 0.1, 2, 20.0, 10.0, 1.0, 0.95, 1.0, True, True)
    yield "general_advantages.general_advantages", "ppo_advantages, every setting", everything


def _examples(dtype: torch.dtype) -> Iterator[Example]:
    """Calls that reach every kernel, at the sizes that choose their largest tiles."""
    yield from _ranking_examples(dtype)
    yield from _logits_examples(dtype)
    flat, mask = torch.zeros(4096, dtype=dtype), torch.ones(4096, dtype=torch.bool)
    yield from _ppo_examples(flat, mask, torch.zeros((), dtype=torch.float64))
    yield from _advantage_examples(dtype)
    yield "whitening.masked_whiten", "", (flat, mask, None, True, 1, 1e-8, 0)
    stats, rule = torch.zeros(4).double(), (False, 0, 1e-5, 2)
    yield "whitening.masked_whiten", " by stats", (flat, mask, stats, *rule)
    rows, group = flat.view(4, 1024), torch.zeros(4, dtype=torch.int64)
    yield "whitening.group_whiten", "", (rows, mask.view(4, 1024), group, 2, *rule)
    ids = torch.zeros(4096, dtype=torch.int64)
    yield "groups.group_advantages", "", (flat, ids, 512, 0, True, 1, 1e-4)


def launches(dtype: torch.dtype) -> list[Launch]:
    """Every launch of the examples; no kernel runs."""
    found: list[Launch] = []

    def record(
        call: str, kernel: Any, *args: Any, grid: Any, warmup: bool, num_warps: int = 4, **constants: Any
    ) -> None:
        names = [parameter.name for parameter in kernel.params]
        arguments = {**dict(zip(names, args, strict=False)), **constants}
        name = f"{call}, {str(dtype)[6:]}: {kernel.fn.__name__.strip('_')}"
        found.append(Launch(label=name, kernel=kernel, arguments=arguments, num_warps=num_warps))

    for place, more, arguments in _examples(dtype):
        module, _, name = place.partition(".")
        label = more if more[:1].isalpha() else name + more
        function = getattr(importlib.import_module(f"instructrl.kernels.triton.{module}"), name)
        with mock.patch.object(JITFunction, "run", lambda *args, name=label, **rest: record(name, *args, **rest)):
            function(*arguments)
    return found


def _needs(usage: str, patterns: tuple[str, str], assembly: str, load: str, store: str) -> dict[str, int]:
    registers, spills = (int(re.search(pattern, usage)[1]) for pattern in patterns)  # pyright: ignore
    wide = {"wide_loads": len(re.findall(load, assembly)), "wide_stores": len(re.findall(store, assembly))}
    return {"registers": registers, "spills": spills, **wide}


def _nvidia_report(code: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        usage = run_tool("cuobjdump", "--dump-resource-usage", file.name).stdout
        # Triton's cuobjdump looks for nvdisasm on the PATH; nvdisasm itself needs nothing.
        assembly = run_tool("nvdisasm", file.name).stdout
    return _needs(usage, (r"REG:(\d+)", r"STACK:(\d+)"), assembly, *WIDE)


def _amd_report(assembly: str) -> dict[str, int]:
    names = r"\.vgpr_count:\s*(\d+)", r"\.vgpr_spill_count:\s*(\d+)"
    wide = r"\b(?:global|buffer)_load_dwordx4", r"\b(?:global|buffer)_store_dwordx4"
    return _needs(assembly, names, assembly, *wide)


def compile_ahead(arch: str, launch: Launch) -> Row:
    """Compile one launch. arch: a compute capability such as "90", or an AMD name such as "gfx942"."""
    amd = arch.startswith("gfx")
    target = GPUTarget("hip", arch, 64) if amd else GPUTarget("cuda", int(arch), 32)
    compiled = triton.compile(launch.source(), target=target, options={"num_warps": launch.num_warps})
    needs = _amd_report(compiled.asm["amdgcn"]) if amd else _nvidia_report(compiled.asm["cubin"])
    place = {"backend": "triton", "file": launch.file, "kernel": launch.label, "arch": arch if amd else f"sm_{arch}"}
    return Row(**place, shared_bytes=compiled.metadata.shared, **needs)


def distinct(dtype: torch.dtype) -> list[Launch]:
    """Every launch of the examples; what several calls launch alike is there once."""
    found: dict[str, Launch] = {}
    for launch in launches(dtype):
        found.setdefault(launch.source().hash(), launch)
    return list(found.values())


def rows(architectures: tuple[str, ...] = ARCHITECTURES, dtypes: tuple[str, ...] = DTYPES) -> Iterator[Row]:
    """Reports of every kernel, dtype and architecture."""
    for dtype in dtypes:
        for launch in distinct(getattr(torch, dtype)):
            for arch in architectures:
                yield compile_ahead(arch, launch)


def main() -> None:
    given = command(__doc__, arch=[], dtype=[*DTYPES])
    for row in rows(tuple(given.arch) or ARCHITECTURES, tuple(given.dtype)):
        print(json.dumps(asdict(row)))


if __name__ == "__main__":
    main()
