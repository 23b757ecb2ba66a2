"""One row of targets.py: check everybody's results, then time them in turns."""

import importlib.util
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.core import limits
from benchmarks.core.checks import Distance, distances, why_ours_is_wrong, why_peer_is_wrong
from benchmarks.core.tables import quartiles
from benchmarks.core.timing import (
    CaptureError,
    Contender,
    CpuMeter,
    Memory,
    contender,
    forced,
    take_turns,
)
from benchmarks.core.workloads import EAGER, Provider
from benchmarks.device.target_rows import BACKENDS, Prepared, Row, Setting, Target

if importlib.util.find_spec("triton") is not None:
    from triton.errors import TritonError
else:
    TritonError = RuntimeError

# What a library that is not here, does not know this GPU or cannot compile may raise. A dead device does not pass: the
# wait after it raises again.
FAILURES = (ImportError, RuntimeError, ValueError, TypeError, AttributeError, AssertionError, LookupError, OSError,
            TritonError)  # fmt: skip
CHECK, GRAPH = "check", "graph"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What a process met its end in before this one: a provider's `CHECK` or the capture of its `GRAPH`, and why."""

    stage: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """deadline: of `time.monotonic`, after which no round begins. without: by provider, what is not tried again. tell:
    called with the provider and the stage that begins, "" where it is everybody's."""

    rounds: int
    deadline: float
    without: dict[str, Trouble]
    tell: Callable[[str, str], None]


def first_line(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}"[:300]


def results_of(provider: Provider, inputs: dict[str, Any]) -> list[Tensor]:
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


def found_distances(provider: Provider, prepared: Prepared) -> list[Distance]:
    return distances(prepared.pick(results_of(provider, prepared.sets[0])), prepared.truth)


def check(prepared: Prepared, meter: CpuMeter, attempt: Attempt) -> dict[str, dict[str, Any]]:
    """By provider: "error", the largest relative distance from the truth, and "left_out", why it is not timed."""
    plain = {}
    for name in ("reference", EAGER):
        if name in prepared.providers:
            attempt.tell(name, CHECK)
            plain[name] = found_distances(prepared.providers[name], prepared)
    found: dict[str, dict[str, Any]] = {}
    for name, provider in prepared.providers.items():
        start = time.perf_counter()
        found[name] = {}
        trouble = attempt.without.get(name)
        if trouble is not None and trouble.stage == CHECK:
            found[name]["left_out"] = trouble.why
            continue
        attempt.tell(name, CHECK)
        try:
            away = found_distances(provider, prepared)
            if name in BACKENDS:
                why = why_ours_is_wrong(away, plain.get("reference", plain[EAGER]))
            else:
                why = why_peer_is_wrong(away, plain[EAGER], [*prepared.sets[0].values()])
            found[name]["error"] = max(x.norm for x in away)
            found[name] |= {"left_out": why} if why else {}
        except FAILURES as error:
            found[name]["left_out"] = first_line(error)
        # Raises where the device is dead, and then everything after it would be in vain.
        meter.synchronize()
        found[name]["first_seconds"] = round(time.perf_counter() - start, 2)
    return found


def ready(provider: Provider, prepared: Prepared, graph: bool, meter: CpuMeter) -> Contender:
    sets = itertools.cycle(prepared.sets)

    def step() -> list[Tensor]:
        return provider.run(next(sets))

    with forced(provider.backend):
        for _ in prepared.sets:
            step()
    return contender(step, meter, provider.backend, graph)


def yardstick(kind: str, setting: Setting) -> limits.Amount:
    """The copy or the product that is timed beside the providers, and its bytes or FLOPs."""
    if kind == "copy":
        return limits.copy(2**16 if setting.dry else 2**31, setting.device)
    return limits.product(64 if setting.dry else 8192, setting.device, torch.bfloat16)


def figures(
    pairs: list[tuple[float, float]], beside: list[tuple[float, float]], work: float, memory: Memory | None
) -> dict[str, Any]:
    """What targets ask for. beside: the yardstick's. work: the step's bytes or FLOPs over the yardstick's."""
    wall, device = (quartiles([1e6 * value for value in column]) for column in zip(*pairs, strict=True))
    found: dict[str, Any] = {"wall_us": wall[1], "device_us": device[1], "wall_quartiles_us": wall,
                             "device_quartiles_us": device, "rounds": len(pairs)}  # fmt: skip
    if beside:
        shares = [100 * work * theirs[1] / own[1] for own, theirs in zip(pairs, beside, strict=True)]
        found |= {"share_pct": statistics.median(shares), "share_quartiles_pct": quartiles(shares)}
    if memory is not None:
        found |= {"extra_mib": memory.extra_bytes / 2**20, "result_mib": memory.result_bytes / 2**20}
        found["workspace_mib"] = max(0.0, found["extra_mib"] - found["result_mib"])
    return found


def verdict(target: Target, found: dict[str, Any], dry: bool) -> dict[str, Any]:
    """What a provider's figures say of a target: met, missed, or why neither."""
    value = found.get(target.measure)
    if value is None:
        return {"target": target.text, "found": None, "verdict": found.get("left_out", "dry" if dry else "not known")}
    met = value >= target.bound if target.at_least else value <= target.bound
    return {"target": target.text, "found": value, "verdict": "dry" if dry else "met" if met else "missed"}


def made_ready(
    row: Row, prepared: Prepared, found: dict[str, dict[str, Any]], meter: CpuMeter, attempt: Attempt
) -> dict[str, Contender]:
    """The providers that are right. found: what `check` did, to which is added why one is not timed after all."""
    contenders: dict[str, Contender] = {}
    for name, provider in prepared.providers.items():
        if "left_out" in found[name]:
            continue
        trouble = attempt.without.get(name)
        graph = row.graph and trouble is None
        attempt.tell(name, GRAPH if graph else CHECK)
        found[name]["why_no_graph"] = trouble.why if trouble else ""
        try:
            contenders[name] = ready(provider, prepared, graph, meter)
        except CaptureError:
            raise
        except FAILURES as error:
            found[name]["left_out"] = first_line(error)
            meter.synchronize()
    return contenders


def run_row(row: Row, setting: Setting, meter: CpuMeter, attempt: Attempt) -> dict[str, Any]:
    """Everything of one row."""
    prepared = row.prepare(setting)
    found = check(prepared, meter, attempt)
    attempt.tell("", "")
    contenders: dict[str, Contender] = {}
    amount = 0
    if row.yardstick:
        step, amount = yardstick(row.yardstick, setting)
        step()
        contenders[row.yardstick] = contender(step, meter)
    contenders |= made_ready(row, prepared, found, meter, attempt)
    attempt.tell("", "")
    times = take_turns(contenders, meter, attempt.rounds, attempt.deadline)
    beside = times.pop(row.yardstick, [])
    work = (prepared.num_bytes if row.yardstick == "copy" else prepared.num_flops) / max(amount, 1)
    for name, pairs in times.items():
        x = contenders[name]
        found[name] |= figures(pairs, beside, work, x.memory)
        found[name] |= {"calls": x.calls, "device_time_by": x.timer.method}
    result: dict[str, Any] = {"row": row.name, "gate": prepared.gate, "bytes": prepared.num_bytes}
    result |= {"flops": prepared.num_flops, "num_sets": len(prepared.sets), "providers": found}
    result["set_bytes"] = sum(x.nbytes for x in prepared.sets[0].values() if isinstance(x, Tensor))
    result["cache_bytes"] = meter.cache_bytes
    if beside:
        rate = amount / statistics.median(device for _, device in beside)
        result["yardstick"] = {"kind": row.yardstick, "per_second": rate}
    result["targets"] = [
        {"backend": name, **verdict(target, found[name], setting.dry)} for target in row.targets for name in BACKENDS
    ]
    return result
