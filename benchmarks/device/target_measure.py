"""One row of gpu_targets.py: check everybody's results, then time them in turns."""

import importlib.util
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.device.target_rows import BACKENDS, Prepared, Provider, Row, Setting, Target
from benchmarks.device.timing import (
    CaptureError,
    CpuMeter,
    DeviceTimer,
    GpuMeter,
    Memory,
    Meter,
    Step,
    copy_step,
    num_calls,
    product_step,
)
from instructrl import ops

if importlib.util.find_spec("triton") is not None:
    from triton.errors import TritonError
else:
    TritonError = RuntimeError

# What a library that is not here, does not know this GPU or cannot compile may raise. A dead device does not pass: the
# wait after it raises again.
FAILURES = (ImportError, RuntimeError, ValueError, TypeError, AttributeError, AssertionError, LookupError, OSError,
            TritonError)  # fmt: skip
LEAST_ROUNDS = 3
CHECK, GRAPH = "check", "graph"
FLOAT32_PEER = 1e-4


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A provider ready to be timed. calls: in a sample."""

    step: Step
    backend: str
    calls: int
    timer: DeviceTimer
    memory: Memory | None


def first_line(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}"[:300]


def meter_of(device: torch.device) -> Meter:
    return GpuMeter() if device.type == "cuda" else CpuMeter()


def results_of(provider: Provider, inputs: dict[str, Any]) -> list[Tensor]:
    """A provider's results; those of a second call, made where the first one's results were and are NaN by then."""
    with ops.use_backend(provider.backend):
        found = provider.run(inputs)
        if provider.once:
            return [x.detach().clone() for x in found]
        for x in found:
            if x.is_floating_point():
                x.detach().fill_(torch.nan)
        del found
        return [x.detach() for x in provider.run(inputs)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """Of one result from the truth. largest: error, infinite where there is a NaN. norm: of the error over that of the
    truth. eps: of the result's dtype where that is a half one, else 0. top: the truth's largest magnitude."""

    largest: float
    norm: float
    eps: float
    top: float


def distance(x: Tensor, truth: Tensor) -> Distance:
    if x.shape != truth.shape:
        raise ValueError(f"results: found shape {tuple(x.shape)}, accepted is {tuple(truth.shape)}")
    error = x.to(torch.float64).sub_(truth)
    largest, norm = float(error.abs().max()), float(error.norm() / truth.norm())
    right = largest == largest and norm == norm
    return Distance(
        largest=largest if right else float("inf"),
        norm=norm if right else float("inf"),
        eps=torch.finfo(x.dtype).eps if x.dtype in (torch.bfloat16, torch.float16) else 0.0,
        top=float(truth.abs().max()),
    )


def distances(results: list[Tensor], prepared: Prepared) -> list[Distance]:
    return [distance(x, truth) for x, truth in zip(prepared.pick(results), prepared.truth, strict=True)]


def why_ours_is_wrong(found: list[Distance], reference: list[Distance]) -> str:
    """At most twice as far from float64 as the reference in float32, with four roundings to float32 and one to the
    dtype of the result; "" for what is right."""
    for place, (x, plain) in enumerate(zip(found, reference, strict=True)):
        bound = 2 * plain.largest + (4 * torch.finfo(torch.float32).eps + x.eps) * x.top
        if not x.largest <= bound:
            return f"wrong: result {place}: largest error {x.largest:.3g}, accepted is {bound:.3g}"
    return ""


def why_peer_is_wrong(found: list[Distance], eager: list[Distance], inputs: dict[str, Any]) -> str:
    """Another algorithm rounds elsewhere: the norm of its error is at most twice that of eager PyTorch's, and a
    rounding to bfloat16 where that is the dtype of an input, else 1e-4. "" for what is right."""
    low = any(isinstance(x, Tensor) and x.dtype == torch.bfloat16 for x in inputs.values())
    slack = torch.finfo(torch.bfloat16).eps if low else FLOAT32_PEER
    for place, (x, plain) in enumerate(zip(found, eager, strict=True)):
        if not x.norm <= 2 * plain.norm + slack:
            return f"wrong: result {place}: relative error {x.norm:.3g}, accepted is {2 * plain.norm + slack:.3g}"
    return ""


def check(prepared: Prepared, meter: Meter, attempt: Attempt) -> dict[str, dict[str, Any]]:
    """By provider: "error", the largest relative distance from the truth, and "left_out", why it is not timed."""
    inputs = prepared.sets[0]
    plain = {}
    for name in ("reference", "eager"):
        if name in prepared.providers:
            attempt.tell(name, CHECK)
            plain[name] = distances(results_of(prepared.providers[name], inputs), prepared)
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
            away = distances(results_of(provider, inputs), prepared)
            if name in BACKENDS:
                why = why_ours_is_wrong(away, plain.get("reference", plain["eager"]))
            else:
                why = why_peer_is_wrong(away, plain["eager"], inputs)
            found[name]["error"] = max(x.norm for x in away)
            found[name] |= {"left_out": why} if why else {}
        except FAILURES as error:
            found[name]["left_out"] = first_line(error)
        # Raises where the device is dead, and then everything after it would be in vain.
        meter.synchronize()
        found[name]["first_seconds"] = round(time.perf_counter() - start, 2)
    return found


def contender(provider: Provider, prepared: Prepared, graph: bool, meter: Meter) -> Contender:
    sets = itertools.cycle(prepared.sets)

    def step() -> list[Tensor]:
        return provider.run(next(sets))

    with ops.use_backend(provider.backend):
        for _ in prepared.sets:
            step()
        calls = num_calls(meter.wall(step, 1))
        memory = meter.memory(step)
        timer = meter.timer(step, calls, graph)
    return Contender(step=step, backend=provider.backend, calls=calls, timer=timer, memory=memory)


def take_turns(
    contenders: dict[str, Contender], meter: Meter, rounds: int, deadline: float
) -> dict[str, list[tuple[float, float]]]:
    """Wall and device seconds by name, a pair a round; at least `LEAST_ROUNDS`, no more once the deadline is past."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for number in range(rounds):
        if number >= LEAST_ROUNDS and time.monotonic() > deadline:
            break
        for name, x in contenders.items():
            with ops.use_backend(x.backend):
                x.step()
                times[name].append((meter.wall(x.step, x.calls), x.timer.seconds()))
    return times


def yardstick(kind: str, setting: Setting, meter: Meter) -> tuple[Contender, int]:
    """The copy or the product that is timed beside the providers, and its bytes or FLOPs."""
    if kind == "copy":
        step, amount = copy_step(meter, 2**16 if setting.dry else 2**31, setting.device)
    else:
        step, amount = product_step(meter, 64 if setting.dry else 8192, setting.device)
    step()
    calls = num_calls(meter.wall(step, 1))
    timer = meter.timer(step, calls, graph=False)
    return Contender(step=step, backend="reference", calls=calls, timer=timer, memory=None), amount


def quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive")


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
    row: Row, prepared: Prepared, found: dict[str, dict[str, Any]], meter: Meter, attempt: Attempt
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
            contenders[name] = contender(provider, prepared, graph, meter)
        except CaptureError:
            raise
        except FAILURES as error:
            found[name]["left_out"] = first_line(error)
            meter.synchronize()
    return contenders


def run_row(row: Row, setting: Setting, meter: Meter, attempt: Attempt) -> dict[str, Any]:
    """Everything of one row."""
    prepared = row.prepare(setting)
    found = check(prepared, meter, attempt)
    attempt.tell("", "")
    contenders: dict[str, Contender] = {}
    amount = 0
    if row.yardstick:
        contenders[row.yardstick], amount = yardstick(row.yardstick, setting, meter)
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
