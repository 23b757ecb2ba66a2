"""Every op on every backend that can run it here, beside eager PyTorch, torch.compile of it, and peers.

    python -m benchmarks.ops.bench [--out FOLDER] [--rounds 7] [--only NAME]

The rows are the large cases of the op table, forward and backward. A backend of this project is timed only after its
results were found as near to float64 as eager float32's are; compiled code and peers, after half of the digits of
float32 were found right, and the table says how their errors compare with eager's. A round runs each provider in turn,
after a call of its own that is not timed; figures are medians over rounds with
the middle half of the rounds in brackets, ratios are medians of the rounds' own. The limit of a row is the time in
which this run copies the bytes of inputs and gradients, or for a linear head multiplies three times. Extra memory is
the peak of a second call in a process of its own, over what that process held before the call. On a GPU wall time is
given, and device time by events around calls, the cache flushed before them.

Writes FOLDER/<machine>/<date>.json, two tables beside it as Markdown, whole and in short, and a plot of the ratios.
"""

import datetime
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.core import limits, machine
from benchmarks.core.checks import EPS, Distance, distances, times_eager, why_ours_is_wrong
from benchmarks.core.memory import extra_bytes, in_process
from benchmarks.core.peers import PEERS
from benchmarks.core.tables import RESULTS, command, markdown, median_ratio, quartiles, write_json
from benchmarks.core.timing import contender, forced, meter_of, take_turns
from benchmarks.core.workloads import COMPILE, EAGER, Inputs, Provider, beside, doubled, public, running
from instructrl import kernels, ops
from instructrl.ops.cases import CASES, Case

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROWS = {f"{case.op} {case.name}": case for case in CASES if case.large}


def inputs(case: Case) -> Inputs:
    made = {name: x.to(DEVICE) if isinstance(x, Tensor) else x for name, x in case.make(torch.float32).items()}
    return made | {name: made[name].requires_grad_() for name in case.gradients}


def providers(case: Case, arguments: Inputs) -> dict[str, Provider]:
    """By name; "eager" is the reference."""
    usable = [row.backend for row in ops.usability() if row.usable and row.op == case.op]
    run = running(public(case.op), case.gradients)
    found = {EAGER if name == kernels.REFERENCE else name: Provider(run=run, backend=name) for name in usable}
    found[COMPILE] = Provider(run=running(torch.compile(public(case.op)), case.gradients))
    for name, peer in PEERS.get(case.op, {}).items():
        if peer.takes(public(case.op), arguments):
            found[name] = beside(peer, case.gradients)
    return found


def results(provider: Provider, arguments: Inputs) -> list[Tensor]:
    with forced(provider.backend):
        return provider.run(arguments)


def truth(case: Case, arguments: Inputs) -> list[Tensor]:
    return results(Provider(run=running(public(case.op), case.gradients)), doubled(arguments))


def checked(case: Case, found: dict[str, Provider], arguments: Inputs) -> dict[str, float]:
    """Those that are here and compute the same, and the largest of their errors as a multiple of eager's; says why
    another one is left out."""
    exact = truth(case, arguments)
    near: list[Distance] = distances(results(found[EAGER], arguments), exact)
    backends, kept = {EAGER, *(row.backend for row in ops.usability())}, {}
    for name, provider in found.items():
        try:
            far = distances(results(provider, arguments), exact)
            # Others may sum in another order. What they must not do is to compute something else.
            why = why_ours_is_wrong(far, near, 1.0 if name in backends else EPS**-0.5)
        except ImportError:
            continue
        except ValueError as error:
            far, why = [], str(error)
        if why and exact[0].is_floating_point():
            print(f"  {name} is left out: {why}")
        else:
            kept[name] = times_eager(far, near)
    return kept


def extra(row: str, name: str) -> int:
    """Memory of a call in this process."""
    arguments = inputs(ROWS[row])
    provider = providers(ROWS[row], arguments)[name]
    # Loads libraries and compiles, which is not what a step of training takes.
    results(provider, arguments)
    return extra_bytes(lambda: results(provider, arguments))


COLUMNS = ("op", "provider", "ms", "device ms", "times as fast as eager", "as compile", "of the limit", "extra memory",
           "error")  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for each op, shape and provider. Errors are multiples of eager's."""
    lines = []
    for row in rows:
        name = row["row"]
        for provider, x in row["providers"].items():
            low, wall, high = (f"{1e3 * value:.3g}" for value in x["wall_seconds"])
            device = "" if DEVICE.type == "cpu" else f"{1e3 * x['device_seconds'][1]:.3g}"
            fast = (x["times_as_fast"].get(other) for other in (EAGER, COMPILE))
            ratios = ["" if ratio is None else f"{ratio:.2f}" for ratio in fast]
            share, memory = f"{100 * x['share']:.0f}%", f"{x['extra_bytes'] / 1e6:.0f} MB"
            ms = f"{wall} [{low}, {high}]"
            lines.append([name, provider, ms, device, *ratios, share, memory, f"{x['error']:.1f}"])
            name = ""
    return markdown(COLUMNS, lines)


def summary(rows: list[dict[str, Any]]) -> str:
    """Markdown: the best backend of each row beside eager, torch.compile and the fastest peer."""
    columns = ("op, shape", "backend", EAGER, COMPILE, "fastest peer", "of the limit", "extra memory, eager's")
    lines = []
    for row in rows:
        found = row["providers"]
        own = [name for name in found if name in kernels.BACKENDS]
        if not own:
            continue
        best = min(own, key=lambda name: found[name]["wall_seconds"][1])
        fast = found[best]["times_as_fast"]
        peer = min((x for x in found if x not in (*own, EAGER, COMPILE)), key=lambda name: fast[name], default=None)
        cells = [row["row"], best, f"{fast[EAGER]:.2f}", f"{fast[COMPILE]:.2f}" if COMPILE in fast else ""]
        cells += ["" if peer is None else f"{fast[peer]:.2f} ({peer})", f"{100 * found[best]['share']:.0f}%"]
        lines.append([*cells, " / ".join(f"{found[name]['extra_bytes'] / 1e6:.0f} MB" for name in (best, EAGER))])
    return markdown(columns, lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """How many times as fast as eager PyTorch, on a log axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.5 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(name for row in rows for name in row["providers"] if name != EAGER):
        found = [(row["providers"][name]["times_as_fast"][EAGER], y) for y, row in enumerate(rows)
                 if name in row["providers"]]  # fmt: skip
        axes.plot(*zip(*found, strict=True), "o", label=name)
    axes.axvline(1.0, color="grey", linewidth=0.8)
    axes.set(xscale="log", xlabel="times as fast as eager PyTorch", yticks=range(len(rows)))
    axes.set_yticklabels([row["row"] for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.legend(frameon=False)
    figure.savefig(path)


def machine_name() -> str:
    """A folder's name for this machine."""
    cpu = f"{platform.machine()} {torch.get_num_threads()} threads"
    return machine.folder_name(torch.cuda.get_device_name() if DEVICE.type == "cuda" else cpu)


def limit_seconds(case: Case, arguments: Inputs, rates: dict[str, float]) -> float:
    """Of a call: the ops with a linear head are matrix products, at least three with their gradients; all others move
    bytes."""
    if "weight" not in arguments:
        return case.bytes_moved(arguments) / rates["copy_bytes_per_s"]
    num_classes, width = arguments["weight"].shape
    return 6 * arguments["tokens"].numel() * num_classes * width / rates["product_flops_per_s"]


def run_row(row: str, rounds: int, rates: dict[str, float]) -> dict[str, Any]:
    """Check and time one row."""
    case, meter = ROWS[row], meter_of(DEVICE)
    arguments = inputs(case)
    every = providers(case, arguments)
    kept = checked(case, every, arguments)
    contenders = {
        name: contender(lambda run=every[name].run: run(arguments), meter, every[name].backend) for name in kept
    }
    times, found = take_turns(contenders, meter, rounds), {}
    device_seconds = {name: [device for _, device in pairs] for name, pairs in times.items()}
    for name, pairs in times.items():
        device = quartiles(device_seconds[name])
        found[name] = {
            "wall_seconds": quartiles([wall for wall, _ in pairs]),
            "device_seconds": device,
            "times_as_fast": {x: median_ratio(device_seconds[x], device_seconds[name]) for x in times},
            "share": limit_seconds(case, arguments, rates) / device[1],
            "extra_bytes": in_process(extra, row, name),
            "error": kept[name],
        }
    torch.compiler.reset()
    return {"row": row, "bytes": case.bytes_moved(arguments), "providers": found}


def main() -> None:
    parser = command(__doc__, rounds=7, only="rows")
    parser.set_defaults(out=RESULTS)
    arguments, meter = parser.parse_args(), meter_of(DEVICE)
    rates = {
        "copy_bytes_per_s": limits.rate(limits.copy(2**28, DEVICE), meter, arguments.rounds),
        "product_flops_per_s": limits.rate(limits.product(2048, DEVICE, torch.float32), meter, arguments.rounds),
    }
    print(f"{machine_name()}, torch {torch.__version__}, copies {rates['copy_bytes_per_s'] / 1e9:.1f} GB/s")
    print(f"float32 matrix products {rates['product_flops_per_s'] / 1e9:.1f} GFLOP/s")
    rows = []
    for row in ROWS:
        if arguments.only in row:
            rows.append(run_row(row, arguments.rounds, rates))
            print(table(rows[-1:]).split("\n", 2)[2], end="", flush=True)
            # After each row: a run that is broken off has what it measured.
            write(arguments.out / machine_name(), rates, rows)


def write(folder: Path, rates: dict[str, float], rows: list[dict[str, Any]]) -> None:
    """Everything that there is so far."""
    folder.mkdir(parents=True, exist_ok=True)
    today = datetime.date.today().isoformat()
    head = {"torch": torch.__version__, "native": kernels.about("native"), **rates}
    write_json(folder / f"{today}.json", {**head, "rows": rows})
    (folder / f"{today}.md").write_text(table(rows), encoding="utf-8")
    (folder / f"{today}-summary.md").write_text(summary(rows), encoding="utf-8")
    plot(rows, folder / f"{today}.svg")


if __name__ == "__main__":
    main()
