"""The rows of floors.py on two checkouts of the package, interleaved in one run: what a change costs who does not
use it.

    git worktree add /tmp/old COMMIT && (cd /tmp/old && python setup.py build_ext --inplace)
    OMP_NUM_THREADS=2 python -m benchmarks.ops.against /tmp/old [--rounds 15] [--only NAME] [--out FILE.json]

Three processes take turns: the other checkout, this one, and the other one again, in another order each round, and new
ones after a third of the rounds, because where a process's memory lies is part of its speed. Ratios are medians of the
rounds' own, with the middle half of the rounds in brackets: how many times as fast this checkout is, and what the other
one makes of itself, which is the noise. The rows are this checkout's; the other one needs its extension in place.
"""

import random
import sys
from pathlib import Path

from benchmarks.core.machine import ROOT
from benchmarks.core.tables import command, markdown, spread, write_json
from benchmarks.core.turns import Worker, say, turns

# Benchmarks from here, the package from there, whatever the environment has installed.
START = """
import sys
here, checkout = sys.argv[1:]
sys.path.insert(0, here)
import benchmarks
sys.path.remove(here)
sys.path.insert(0, checkout)
import instructrl.kernels
instructrl.kernels.__path__.append(f"{checkout}/kernels")
from benchmarks.ops import against
against.serve()
"""
OLD, NEW, AGAIN = "other", "this", "other again"
GENERATIONS = 3


def serve() -> None:
    """In a process: a turn names a row, and is answered with the seconds of a call of ours."""
    from benchmarks.core.rows import NATIVE
    from benchmarks.core.timing import CpuMeter, contender, take_turns
    from benchmarks.ops.floors import ROWS

    rows, current, ready, meter = {row.name: row for row in ROWS}, "", {}, CpuMeter()
    for name in turns():
        if name != current:
            # What the last row held goes first.
            ready.clear()
            inputs = rows[name].inputs(meter)
            ours = rows[name].providers(meter)[NATIVE]
            with_inputs = lambda run=ours.run, given=inputs: run(given)  # noqa: E731
            with_inputs()
            ready[NATIVE], current = contender(with_inputs, meter, ours.backend), name
        say(take_turns(ready, meter, 1)[NATIVE][0][0])
    say({})


def compared(places: dict[str, Path], names: list[str], rounds: int) -> dict[str, dict[str, list[float]]]:
    """By row and process: the seconds of each round, after one of each generation that is not counted."""
    times: dict[str, dict[str, list[float]]] = {name: {x: [] for x in places} for name in names}
    shuffled, generations = random.Random(0), min(GENERATIONS, rounds)
    for generation in range(generations):
        workers = {x: Worker([sys.executable, "-c", START, str(ROOT), str(at)], cwd=at) for x, at in places.items()}
        for name in names:
            for number in range(-1, len(range(generation, rounds, generations))):
                for x in shuffled.sample(list(places), len(places)):
                    seconds = workers[x].turn(name)
                    times[name][x] += [seconds] if number >= 0 else []
        for worker in workers.values():
            worker.end()
    return times


def cells(name: str, times: dict[str, list[float]]) -> list[str]:
    shown = [spread([1e3 * seconds for seconds in times[x]]) for x in (OLD, NEW)]
    ratios = [[a / b for a, b in zip(times[OLD], times[x], strict=True)] for x in (NEW, AGAIN)]
    return [name, *shown, *(spread(x, ".3f") for x in ratios)]


def main() -> int:
    arguments = command(__doc__, checkout_=Path, rounds=15, only="", out=Path)
    checkout = arguments.checkout.resolve()
    if not list(checkout.glob("instructrl/_C*.so")):
        raise SystemExit(
            f"checkout: found no extension in {checkout}/instructrl, accepted is one that is built in place"
        )
    from benchmarks.ops.floors import ROWS

    names = [row.name for row in ROWS if arguments.only in row.name]
    times = compared({OLD: checkout, NEW: ROOT, AGAIN: checkout}, names, arguments.rounds)
    columns = ("op, shape", "other, ms", "this, ms", "this is times as fast", "the other one again")
    table = markdown(columns, [cells(*x) for x in times.items()])
    print(table, end="")
    if arguments.out:
        write_json(arguments.out, {"checkout": str(checkout), "seconds": times})
        arguments.out.with_suffix(".md").write_text(table, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
