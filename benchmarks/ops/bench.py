"""Every op on every backend that can run it here, beside eager PyTorch, torch.compile of it, and peers.

    python -m benchmarks.ops.bench [--out FOLDER] [--rounds 7] [--only NAME]

The rows are the large cases of the op table, forward and backward. A backend of this project is timed only after its
results were found as near to float64 as eager float32's are; compiled code and peers, after half of the digits of
float32 were found right, and the table says how their errors compare with eager's. A round runs each provider in turn,
after a call of its own that is not timed (calls longer than 0.1 s go without); figures are medians over rounds with
the middle half of the rounds in brackets, ratios are medians of the rounds' own. The limit of a row is the time in
which this run copies the bytes of inputs and gradients, or for a linear head multiplies three times. Extra memory is
the peak of a second call in a process of its own, over what that process held before the call. On a GPU wall time is
given, and device time from events around the calls.

Writes FOLDER/<machine>/<date>.json, two tables beside it as Markdown, whole and in short, and a plot of the ratios.
"""

import argparse
import ctypes
import datetime
import importlib
import json
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.ops.peers import PEERS, Peer, padded_with_zeros
from instructrl import kernels, ops
from instructrl.ops.cases import CASES, Case

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROWS = {f"{case.op} {case.name}": case for case in CASES if case.large}
Provider = Callable[[], list[Tensor]]


def public(case: Case) -> Callable[..., Any]:
    family, function = case.op.split(".")
    return getattr(importlib.import_module(f"instructrl.ops.{family}"), function)


def inputs(case: Case, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    made = case.make(torch.float32)
    for name, x in made.items():
        if isinstance(x, Tensor):
            made[name] = x.to(DEVICE, dtype if x.is_floating_point() else x.dtype)
    return made | {name: made[name].requires_grad_() for name in case.gradients}


def with_gradients(case: Case, arguments: dict[str, Any], output: object) -> list[Tensor]:
    """The tensors of an output, and the gradients of the sum of those that have one."""
    tensors = [x for x in ([output] if isinstance(output, Tensor) else output) if isinstance(x, Tensor)]  # pyright: ignore
    differentiable = [x.sum() for x in tensors if x.requires_grad]
    if differentiable:
        total = sum(differentiable[1:], differentiable[0])
        tensors += torch.autograd.grad(total, [arguments[name] for name in case.gradients])
    return [x.detach() for x in tensors]


def on(backend: str, function: Callable[..., Any], case: Case, arguments: dict[str, Any]) -> Provider:
    def run() -> list[Tensor]:
        with ops.use_backend(backend):
            return with_gradients(case, arguments, function(**arguments))

    return run


def beside(peer: Peer, case: Case, arguments: dict[str, Any]) -> Provider:
    """The peer is imported at the first call, so that a process loads the libraries it runs."""
    given, calls = padded_with_zeros(arguments), []

    def run() -> list[Tensor]:
        if not calls:
            calls.append(peer.adapt(given))
        return with_gradients(case, given, calls[0]())

    return run


def providers(case: Case, arguments: dict[str, Any]) -> dict[str, Provider]:
    """By name; "eager" is the reference."""
    usable = [row.backend for row in ops.usability() if row.usable and row.op == case.op]
    found = {
        "eager" if backend == kernels.REFERENCE else backend: on(backend, public(case), case, arguments)
        for backend in usable
    }
    found["compile"] = on(kernels.REFERENCE, torch.compile(public(case)), case, arguments)
    for name, peer in PEERS.get(case.op, {}).items():
        if peer.takes(public(case), arguments):
            found[name] = beside(peer, case, arguments)
    return found


def errors(results: list[Tensor], truth: list[Tensor]) -> list[float]:
    return [float((a - b).abs().max()) for a, b in zip(results, truth, strict=True)]


def checked(case: Case, found: dict[str, Provider]) -> dict[str, tuple[Provider, float]]:
    """Those that are here and compute the same; says why another one is left out.

    With each the largest of its errors, as a multiple of eager's, or of one rounding where eager's is less.
    """
    truth = on(kernels.REFERENCE, public(case), case, inputs(case, torch.float64))()
    near, kept = errors(found["eager"](), truth), {}
    rounding = [torch.finfo(torch.float32).eps * float(x.abs().max()) for x in truth]
    backends = {"eager", *(row.backend for row in ops.usability())}
    for name, provider in found.items():
        try:
            results = provider()
        except ImportError:
            continue
        if len(results) != len(truth):
            print(f"  {name} is left out: found {len(results)} results, accepted is {len(truth)}")
            continue
        # Others may sum in another order. What they must not do is to compute something else.
        slack = 1.0 if name in backends else torch.finfo(torch.float32).eps ** -0.5
        far = errors(results, truth)
        sampled = not truth[0].is_floating_point()
        if sampled or all(x <= 2 * y + slack * z for x, y, z in zip(far, near, rounding, strict=True)):
            kept[name] = provider, max(x / max(y, z, 1e-30) for x, y, z in zip(far, near, rounding, strict=True))
        else:
            print(f"  {name} is left out: its errors are {far}, eager PyTorch's {near}")
    return kept


def seconds(provider: Provider, calls: int) -> tuple[float, float]:
    """Wall and device seconds of a call; on the CPU they are the same."""
    if DEVICE.type == "cpu":
        start = time.perf_counter()
        for _ in range(calls):
            provider()
        wall = (time.perf_counter() - start) / calls
        return wall, wall
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start = time.perf_counter()
    first.record()
    for _ in range(calls):
        provider()
    last.record()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls, first.elapsed_time(last) / 1e3 / calls


def measure(found: dict[str, Provider], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Wall and device seconds by provider, a pair a round. They were called before, by `checked`."""
    once, calls = {}, {}
    for name, provider in found.items():
        once[name] = max(seconds(provider, 1)[0], 1e-9)
        calls[name] = max(1, min(200, int(0.02 / once[name])))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in found}
    for _ in range(rounds):
        for name, provider in found.items():
            if once[name] < 0.1:
                provider()
            times[name].append(seconds(provider, calls[name]))
    return times


def copy_bytes_per_s(rounds: int) -> float:
    """Read and write counted, of 256 MiB to memory that is there."""
    source = torch.ones(2**26, device=DEVICE)
    target = torch.zeros_like(source)

    def copy() -> list[Tensor]:
        return [target.copy_(source)]

    return 2 * source.nbytes / statistics.median(seconds(copy, 3)[1] for _ in range(rounds))


def product_flops_per_s(rounds: int) -> float:
    """Of square float32 matrices of 2048."""
    matrix = torch.randn(2048, 2048, device=DEVICE)
    return 2 * 2048**3 / statistics.median(seconds(lambda: [matrix @ matrix], 1)[1] for _ in range(rounds))


def extra_bytes(row: str, provider: str) -> int:
    """Of a call, measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.ops.bench", "--extra", row, provider]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def print_extra(row: str, name: str) -> None:
    case = ROWS[row]
    provider = providers(case, inputs(case))[name]
    # Loads libraries and compiles, which is not what a step of training takes.
    provider()
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        provider()
        print(torch.cuda.max_memory_allocated() - before)
        return
    # The C library keeps what was freed, and a call would find its memory there.
    ctypes.CDLL(None).malloc_trim(0)
    # Making the inputs took more than any call: Linux forgets that peak when asked to.
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = _resident_bytes("VmRSS")
    provider()
    print(_resident_bytes("VmHWM") - before)


def _resident_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition(f"{field}:")[2].split()[0])


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: a line for each op, shape and provider. Errors are multiples of eager's."""
    columns = ("op", "provider", "ms", "device ms", "times as fast as eager", "as compile", "of the limit")
    columns = (*columns, "extra memory", "error")
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for row in results:
        name = row["row"]
        for provider, x in row["providers"].items():
            low, wall, high = (f"{1e3 * value:.3g}" for value in x["wall_seconds"])
            device = "" if DEVICE.type == "cpu" else f"{1e3 * x['device_seconds'][1]:.3g}"
            fast = (x["times_as_fast"].get(other) for other in ("eager", "compile"))
            ratios = " | ".join("" if ratio is None else f"{ratio:.2f}" for ratio in fast)
            share, extra = f"{100 * x['share']:.0f}%", f"{x['extra_bytes'] / 1e6:.0f} MB"
            head = f"| {name} | {provider} | {wall} [{low}, {high}] | {device} | {ratios} | "
            lines.append(f"{head}{share} | {extra} | {x['error']:.1f} |")
            name = ""
    return "\n".join(lines) + "\n"


def summary(results: list[dict[str, Any]]) -> str:
    """Markdown: the best backend of each row beside eager, torch.compile and the fastest peer."""
    columns = ("op, shape", "backend", "eager", "compile", "fastest peer", "of the limit", "extra memory, eager's")
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for row in results:
        found = row["providers"]
        own = [name for name in found if name in kernels.BACKENDS]
        if not own:
            continue
        best = min(own, key=lambda name: found[name]["wall_seconds"][1])
        peers = [name for name in found if name not in (*own, "eager", "compile")]
        fast = found[best]["times_as_fast"]
        peer = min(peers, key=lambda name: fast[name], default=None)
        cells = [row["row"], best, f"{fast['eager']:.2f}", f"{fast['compile']:.2f}" if "compile" in fast else ""]
        cells += ["" if peer is None else f"{fast[peer]:.2f} ({peer})", f"{100 * found[best]['share']:.0f}%"]
        cells += [" / ".join(f"{found[name]['extra_bytes'] / 1e6:.0f} MB" for name in (best, "eager"))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """How many times as fast as eager PyTorch, on a log axis."""
    figure = Figure(figsize=(9, 0.5 + 0.4 * len(results)), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(name for row in results for name in row["providers"] if name != "eager"))
    for name in names:
        found = [(y, row["providers"][name]["times_as_fast"]["eager"]) for y, row in enumerate(results)
                 if name in row["providers"]]  # fmt: skip
        axes.plot([x for _, x in found], [y for y, _ in found], "o", label=name)
    axes.axvline(1.0, color="grey", linewidth=0.8)
    axes.set(xscale="log", xlabel="times as fast as eager PyTorch", yticks=range(len(results)))
    axes.set_yticklabels([row["row"] for row in results], fontsize=7)
    axes.invert_yaxis()
    axes.legend(frameon=False)
    figure.savefig(path)


def machine() -> str:
    """A folder's name for this machine."""
    name = (
        torch.cuda.get_device_name()
        if DEVICE.type == "cuda"
        else f"{platform.machine()} {torch.get_num_threads()} threads"
    )
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def limit_seconds(case: Case, arguments: dict[str, Any], rates: dict[str, float]) -> float:
    """Of a call: the ops with a linear head are matrix products, at least three with their gradients; all others move
    bytes."""
    if "weight" not in arguments:
        return case.bytes_moved(arguments) / rates["copy_bytes_per_s"]
    num_classes, width = arguments["weight"].shape
    return 6 * arguments["tokens"].numel() * num_classes * width / rates["product_flops_per_s"]


def run_row(row: str, rounds: int, rates: dict[str, float]) -> dict[str, Any]:
    """Check and time one row."""
    case = ROWS[row]
    arguments = inputs(case)
    kept = checked(case, providers(case, arguments))
    times = measure({name: provider for name, (provider, _) in kept.items()}, rounds)
    num_bytes, limit = case.bytes_moved(arguments), limit_seconds(case, arguments, rates)
    found = {}
    for name, pairs in times.items():
        wall, device = (statistics.quantiles(column, n=4) for column in zip(*pairs, strict=True))
        ratios = {
            other: statistics.median(b[1] / a[1] for a, b in zip(pairs, times[other], strict=True))
            for other in times if other != name
        }  # fmt: skip
        found[name] = {
            "wall_seconds": wall,
            "device_seconds": device,
            "times_as_fast": ratios | {name: 1.0},
            "share": limit / device[1],
            "extra_bytes": extra_bytes(row, name),
            "error": kept[name][1],
        }
    torch.compiler.reset()
    return {"row": row, "bytes": num_bytes, "providers": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--extra", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.extra:
        print_extra(*arguments.extra)
        return
    rates = {
        "copy_bytes_per_s": copy_bytes_per_s(arguments.rounds),
        "product_flops_per_s": product_flops_per_s(arguments.rounds),
    }
    print(f"{machine()}, torch {torch.__version__}, copies {rates['copy_bytes_per_s'] / 1e9:.1f} GB/s")
    print(f"float32 matrix products {rates['product_flops_per_s'] / 1e9:.1f} GFLOP/s")
    results = []
    for row in ROWS:
        if arguments.only in row:
            results.append(run_row(row, arguments.rounds, rates))
            print(table(results[-1:]).split("\n", 2)[2], end="", flush=True)
            # After each row: a run that is broken off has what it measured.
            write(arguments.out / machine(), rates, results)


def write(folder: Path, rates: dict[str, float], results: list[dict[str, Any]]) -> None:
    """Everything that there is so far."""
    folder.mkdir(parents=True, exist_ok=True)
    today = datetime.date.today().isoformat()
    head = {"torch": torch.__version__, "native": kernels.about("native"), **rates}
    (folder / f"{today}.json").write_text(json.dumps({**head, "rows": results}) + "\n", encoding="utf-8")
    (folder / f"{today}.md").write_text(table(results), encoding="utf-8")
    (folder / f"{today}-summary.md").write_text(summary(results), encoding="utf-8")
    plot(results, folder / f"{today}.svg")


if __name__ == "__main__":
    main()
