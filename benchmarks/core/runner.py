"""One way to measure a row: check everybody's results, then time them in turns.

Every provider is held against the formula in float64 before it is timed. A round runs each in turn, after a call of its
own that is not timed; figures are medians over rounds with the middle half of the rounds in brackets, ratios and shares
are medians of the rounds' own. What the limit of a row is made of is timed in the same rounds. Inputs that fit a GPU's
cache are taken in turns from several sets.
"""

import importlib
import importlib.util
import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.core import checks, memory
from benchmarks.core.checks import distances
from benchmarks.core.rows import BACKENDS, COMPILE, EAGER, Provider, Row, Target, V
from benchmarks.core.tables import median_ratio, quartiles
from benchmarks.core.timing import CaptureError, Contender, CpuMeter, Step, contender, forced, take_turns
from benchmarks.core.workloads import Inputs

if importlib.util.find_spec("triton") is not None:
    from triton.errors import TritonError
else:
    TritonError = RuntimeError

# What a library that is not here, does not know this GPU or cannot compile may raise. A dead device does not pass: the
# wait after it raises again.
FAILURES = (ImportError, RuntimeError, ValueError, TypeError, AttributeError, AssertionError, LookupError, OSError,
            TritonError)  # fmt: skip
CHECK, GRAPH = "check", "graph"
Amount = tuple[Step, int]
"""A step, and the bytes or FLOPs that it takes."""


def _filled(size: float, device: torch.device) -> Tensor:
    return torch.ones(int(size / 4), device=device)


def _copied(size: float, device: torch.device) -> Amount:
    source, target = _filled(size, device), _filled(size, device)
    return lambda: [target.copy_(source)], 2 * source.nbytes


def _multiplied(rows: int, inner: int, columns: int, device: torch.device, dtype: torch.dtype) -> Amount:
    a, b = (torch.empty(size, inner, device=device, dtype=dtype).normal_() for size in (rows, columns))
    # Rows of the output are as far apart as the linear ops have them.
    out = torch.empty(rows, -(-columns // 64) * 64, device=device, dtype=dtype)[:, :columns]
    return lambda: [torch.mm(a, b.t(), out=out)], 2 * rows * inner * columns


# By name: from a size, smaller for a test, and a device.
YARDSTICKS: dict[str, Callable[[float, torch.device], Amount]] = {
    "copy": lambda x, device: _copied(x * (2**31 if device.type == "cuda" else 2**28), device),
    "read": lambda x, device: (_filled(x * 2**28, device).sum, int(x * 2**28)),
    # Memory that the process has not had before: page faults are most of it.
    "fresh": lambda x, device: (lambda: _filled(x * 2**28, device), int(x * 2**28)),
    "product": lambda x, device: _multiplied(*3 * [int(x * 2048)], device, torch.float32),
    "bfloat16 product": lambda x, device: _multiplied(*3 * [int(x * 8192)], device, torch.bfloat16),
    "head product": lambda x, device: _multiplied(512, 256, int(x * V), device, torch.float32),
}


class Trouble(NamedTuple):
    """What a process met its end in before this one: a provider's `CHECK` or the capture of its `GRAPH`, and why."""

    stage: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """deadline: of `time.monotonic`, after which no round begins. without: by provider, what is not tried again. tell:
    called with the provider and the stage that begins, "" where it is everybody's."""

    rounds: int
    deadline: float = math.inf
    without: Mapping[str, Trouble] = field(default_factory=dict)
    tell: Callable[[str, str], None] = lambda provider, stage: None


def results_of(provider: Provider, inputs: Inputs) -> list[Tensor]:
    """A provider's results; those of a second call, made where the first one's results were and are NaN by then."""
    with forced(provider.backend):
        found = provider.run(inputs)
        if provider.once:
            return [x.detach().clone() for x in found]
        for x in found:
            if x.is_floating_point():
                x.detach().fill_(torch.nan)
        del found
        return [x.detach() for x in provider.run(inputs)]


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".split("\n")[0][:300]


def check(
    providers: Mapping[str, Provider], inputs: Inputs, truth: list[Tensor], meter: CpuMeter, attempt: Attempt
) -> dict[str, dict[str, Any]]:
    """By provider: "error", the largest relative distance from the truth, and "left_out", why it is not timed."""
    # Ids that are drawn may be others by a rounding.
    compared, found = truth[0].is_floating_point(), {name: {} for name in providers}
    attempt.tell(EAGER, CHECK)
    eager = distances(results_of(providers[EAGER], inputs), truth) if compared else []
    for name, provider in providers.items():
        trouble = attempt.without.get(name)
        if trouble is not None and trouble.stage == CHECK:
            found[name]["left_out"] = trouble.why
            continue
        attempt.tell(name, CHECK)
        try:
            results = results_of(provider, inputs)
            if compared and provider.compared:
                away = distances(results, truth)
                ours = name in BACKENDS
                why = checks.why_ours(away, eager) if ours else checks.why_peer(away, eager, [*inputs.values()])
                found[name] |= {"error": max(x.norm for x in away), **({"left_out": why} if why else {})}
        except FAILURES as error:
            found[name]["left_out"] = first_line(error)
        # Raises where the device is dead, and then everything after it would be in vain.
        meter.synchronize()
    return found


def made_ready(row: Row, providers: Mapping[str, Provider], sets: list[Inputs], found: dict[str, dict[str, Any]],
               meter: CpuMeter, attempt: Attempt) -> Iterator[tuple[str, Contender]]:  # fmt: skip
    """The providers that are right. found: what `check` did, to which is added why one is not timed after all."""
    for name, provider in providers.items():
        if "left_out" in found[name]:
            continue
        trouble, turns = attempt.without.get(name), itertools.cycle(sets)
        graph, step = row.graph and trouble is None, lambda run=provider.run, turns=turns: run(next(turns))
        attempt.tell(name, GRAPH if graph else CHECK)
        found[name]["why_no_graph"] = trouble.why if trouble else ""
        try:
            with forced(provider.backend):
                for _ in sets:
                    step()
            yield name, contender(step, meter, provider.backend, graph)
        except CaptureError:
            raise
        except FAILURES as error:
            found[name]["left_out"] = first_line(error)
            meter.synchronize()


def figures(pairs: list[tuple[float, float]], least: list[float], x: Contender) -> dict[str, Any]:
    """Of a provider, from wall and device seconds by round. least: the limit's seconds by round, if there is one."""
    wall, device = ([1e6 * value for value in column] for column in zip(*pairs, strict=True))
    found: dict[str, Any] = {"wall_us": statistics.median(wall), "device_us": statistics.median(device),
                             "wall_quartiles_us": quartiles(wall), "device_quartiles_us": quartiles(device),
                             "wall_rounds_us": wall, "device_rounds_us": device, "rounds": len(pairs),
                             "calls": x.calls, "device_time_by": x.timer.method}  # fmt: skip
    if least:
        found["share_pct"] = statistics.median(1e8 * a / b for a, b in zip(least, device, strict=True))
    if x.memory is not None:
        found |= {"extra_mib": x.memory.extra_bytes / 2**20, "result_mib": x.memory.result_bytes / 2**20}
        found["workspace_mib"] = max(0.0, found["extra_mib"] - found["result_mib"])
    return found


def verdict(target: Target, found: dict[str, Any], tiny: bool) -> dict[str, Any]:
    """What a provider's figures say of a target: met, missed, or why neither."""
    value = found.get(target.measure, found.get("times_as_fast", {}).get(target.measure))
    if value is None:
        return {"target": target.text, "found": None, "verdict": found.get("left_out", "dry" if tiny else "not known")}
    met = value >= target.bound if target.at_least else value <= target.bound
    return {"target": target.text, "found": value, "verdict": "dry" if tiny else "met" if met else "missed"}


def measure(row: Row, meter: CpuMeter, attempt: Attempt) -> dict[str, Any]:
    """Everything of one row."""
    sets = row.sets(meter)
    providers, limit = row.providers(meter), row.limit(sets[0])
    found = check(providers, sets[0], row.truth(sets[0]), meter, attempt)
    attempt.tell("", "")
    yardsticks = {name: YARDSTICKS[name](2**-10 if meter.tiny else 1.0, meter.device) for name in limit}
    contenders = {}
    for name, (step, _) in yardsticks.items():
        step()
        contenders[name] = contender(step, meter)
    contenders |= made_ready(row, providers, sets, found, meter, attempt)
    attempt.tell("", "")
    times = take_turns(contenders, meter, attempt.rounds, attempt.deadline)
    beside = {name: [device for _, device in times.pop(name)] for name in limit}
    shares = [[limit[name] / yardsticks[name][1] * x for x in seconds] for name, seconds in beside.items()]
    least = [sum(part) for part in zip(*shares, strict=True)]
    for name, pairs in times.items():
        found[name] |= figures(pairs, least, contenders[name])
    for name in times:
        own = found[name]["device_rounds_us"]
        found[name]["times_as_fast"] = {x: median_ratio(found[x]["device_rounds_us"], own) for x in times}
    rates = {name: yardsticks[name][1] / statistics.median(seconds) for name, seconds in beside.items()}
    targets = [{"backend": name, **verdict(target, found[name], meter.tiny)}
               for target in row.targets for name in row.backends]  # fmt: skip
    result = {"row": row.name, "limit": limit, "per_second": rates, "num_sets": len(sets)}
    return {**result, "providers": found, "targets": targets}


def extra_bytes(table: str, row: str, provider: str) -> int:
    """Memory of a call in this process, of a row among the ROWS of a module."""
    found = next(x for x in importlib.import_module(table).ROWS if x.name == row)
    inputs = found.inputs(CpuMeter())
    x = replace(found, compile=provider == COMPILE).providers(CpuMeter())[provider]
    with forced(x.backend):
        # Loads libraries and compiles, which is not what a step of training takes.
        x.run(inputs)
        return memory.extra_bytes(lambda: x.run(inputs))
