"""The kinds of plot that the report is made of: intervals in rows, bars, lines. None knows what the numbers mean."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, ScalarFormatter
from numpy.typing import NDArray

from instructrl.evaluation.formatting import Estimate, decimal
from instructrl.evaluation.style import GRID, INK, LABEL, MUTED, SURFACE, draw, shorten

MAX_POINTS = 240  # of one line: a panel has 360 pixels
SMOOTHED_FROM = 60  # points: a shorter line is read as it is

Writer = Callable[[float], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The value axis.

    write, tick: how a value and a mark are written. limits: its ends. reference: where the dashed line is.
    marks: where it is marked; chosen by the limits where there are none.
    """

    write: Writer
    tick: Writer
    limits: tuple[float, float]
    reference: float | None = None
    marks: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of an interval plot. outer: a second, thinner interval. exact: a value without uncertainty."""

    label: str
    estimate: Estimate
    colour: str
    outer: tuple[float, float] | None = None
    exact: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One row of a grouped interval plot: several estimates, each in its colour."""

    label: str
    estimates: tuple[tuple[Estimate, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Points in order. path: they are states that follow each other, so start and end are marked. ringed: an index.
    intervals: the ends of each point's, where there are any."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: str
    dashed: bool = False
    path: bool = False
    ringed: int | None = None
    intervals: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Measured points in the order of their places, with intervals where there are some. lost: places of which nothing
    could be measured."""

    label: str
    xs: Sequence[float]
    estimates: Sequence[Estimate]
    colour: str
    lost: Sequence[float] = ()


def interval_rows(rows: Sequence[Row], *, name: str, what: str, scale: Scale) -> Markup:
    """A dot and a bar a row, the value beside it; a dashed line where the reference is."""
    write = scale.write

    def paint(axes: Axes) -> None:
        _reference_line(axes, scale.reference)
        for y, row in enumerate(rows):
            if row.outer is not None:
                axes.plot(row.outer, (y, y), color=row.colour, linewidth=1.2, alpha=0.75)
            _interval(axes, y, row.estimate, row.colour, hollow=row.exact)
            axes.annotate(
                write(row.estimate.value),
                (1, y),
                xycoords=("axes fraction", "data"),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                color=INK,
            )
        _label_rows(axes, [row.label for row in rows])
        _value_axis(axes, scale.limits, scale.tick)
        if scale.marks:
            axes.xaxis.set_major_locator(FixedLocator(scale.marks))

    parts = [f"{row.label} {_spoken(row.estimate, write)}" for row in rows]
    return draw(paint, name=name, description=f"{what}: {'; '.join(parts)}.", height=52 + 36 * len(rows))


def interval_groups(groups: Sequence[Group], *, name: str, what: str, write: Writer, reference: float | None) -> Markup:
    """Several intervals a row, one below the other."""
    most = max(len(group.estimates) for group in groups)
    step = 0.72 / most
    labels = [
        "\n".join(textwrap.wrap(group.label, LABEL, max_lines=3, placeholder="…", break_on_hyphens=False))
        for group in groups
    ]
    lines = max(label.count("\n") for label in labels) + 1

    def paint(axes: Axes) -> None:
        _reference_line(axes, reference)
        for y, group in enumerate(groups):
            if y:
                axes.axhline(y - 0.5, color=GRID, linewidth=0.8)
            for index, (value, colour) in enumerate(group.estimates):
                offset = (index - (len(group.estimates) - 1) / 2) * step
                _interval(axes, y + offset, value, colour, size=5)
        _label_rows(axes, labels)
        values = [v for group in groups for e, _ in group.estimates for v in (e.value, e.low, e.high) if v is not None]
        _value_axis(axes, (min(0.0, *values), max(1.0, *values)), write)

    parts = [f"{group.label} {', '.join(write(e.value) for e, _ in group.estimates)}" for group in groups]
    height = 52 + round(len(groups) * max(30, 11 * most + 12, 15 * lines + 6))
    return draw(paint, name=name, description=f"{what}: {'; '.join(parts)}.", height=height)


def bars(
    values: Sequence[tuple[str, float, str]], *, name: str, what: str, write: Writer, full: float | None = None
) -> Markup:
    """Horizontal bars from zero, the value at the end of each. values: label, value, colour. full: the axis' end."""
    numbers = [value for _, value, _ in values]
    low, high = min(0.0, *numbers), max(0.0, *numbers) if full is None else full
    room = 0.22 * (high - low or 1.0)

    def paint(axes: Axes) -> None:
        for y, (_, value, colour) in enumerate(values):
            axes.barh(y, value, height=0.52, color=colour)
            axes.annotate(
                write(value),
                (max(value, 0.0), y),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                color=INK,
                bbox={"facecolor": SURFACE, "edgecolor": "none", "pad": 1},
            )
        axes.axvline(0, color=MUTED, linewidth=1)
        _label_rows(axes, [label for label, _, _ in values])
        _value_axis(axes, (low - (room * 0.1 if low < 0 else 0), high + room), write)
        if full is None:  # marks may lie closer than the values are written
            axes.xaxis.set_major_formatter(_equal_decimals())

    parts = [f"{label} {write(value)}" for label, value, _ in values]
    return draw(paint, name=name, description=f"{what}: {'; '.join(parts)}.", height=52 + 34 * len(values))


def lines(
    series: Sequence[Line],
    *,
    name: str,
    what: str,
    x_label: str,
    write: Writer = decimal,
    height: int = 230,
    limits: tuple[float, float] | None = None,
) -> Markup:
    """Lines over a common axis. Long ones are thinned to bin means and drawn faint under their moving average.

    limits: what the value axis holds at least, so that several panels have the same; None: what the lines hold."""

    def paint(axes: Axes) -> None:
        for line in series:
            _line(axes, line)
        if limits is not None:
            axes.update_datalim([(line.xs[0], limit) for line in series for limit in limits])
        axes.set_xlabel(x_label)
        axes.margins(x=0.03, y=0.1)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=x_label in {"step", "epoch"}))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}".replace("-", "−")))  # noqa: RUF001
        axes.yaxis.set_major_formatter(_equal_decimals())

    parts = [
        f"{line.label} from {write(line.ys[0])} at {x_label} {line.xs[0]:,.4g} "
        f"to {write(line.ys[-1])} at {x_label} {line.xs[-1]:,.4g}"
        for line in series
    ]
    return draw(paint, name=name, description=f"{what}: {'; '.join(parts)}.", height=height)


def thin(xs: Sequence[float], ys: Sequence[float], limit: int = MAX_POINTS) -> tuple[NDArray, NDArray]:
    """At most `limit` points: the means of runs of neighbours of (almost) equal length."""
    x, y = np.asarray(xs, dtype=np.float64), np.asarray(ys, dtype=np.float64)
    if len(x) <= limit:
        return x, y
    edges = np.linspace(0, len(x), limit + 1).round().astype(int)
    sizes = np.diff(edges)
    return np.add.reduceat(x, edges[:-1]) / sizes, np.add.reduceat(y, edges[:-1]) / sizes


def moving_average(values: NDArray, window: int) -> NDArray:
    """Centred means over `window` values (odd); at the ends over those of them that exist."""
    kernel = np.ones(window)
    return np.convolve(values, kernel, mode="same") / np.convolve(np.ones_like(values), kernel, mode="same")


def _line(axes: Axes, line: Line) -> None:
    xs, ys = thin(line.xs, line.ys)
    style = (0, (4, 2.5)) if line.dashed else "solid"
    if len(xs) >= SMOOTHED_FROM:
        axes.plot(xs, ys, color=line.colour, linewidth=0.9, alpha=0.3, linestyle=style)
        window = 2 * (len(xs) // 40) + 1
        xs, ys = moving_average(xs, window) if line.path else xs, moving_average(ys, window)
    few = len(xs) <= 30
    width = 1.3 if line.dashed else 1.8
    axes.plot(
        xs,
        ys,
        color=line.colour,
        linestyle=style,
        linewidth=width,
        marker="o" if few else None,
        markersize=3.5,
        zorder=3,
    )
    if line.intervals:
        axes.vlines(line.xs, *zip(*line.intervals, strict=True), color=line.colour, linewidth=4, alpha=0.35)
    if line.path:
        axes.plot(xs[:1], ys[:1], "o", markersize=6, color=SURFACE, markeredgecolor=line.colour, zorder=4)
        axes.plot(xs[-1:], ys[-1:], "o", markersize=7, color=line.colour, zorder=4)
    if line.ringed is not None:
        at = slice(line.ringed, line.ringed + 1)
        axes.plot(xs[at], ys[at], "o", markersize=11, color="none", markeredgecolor=INK, markeredgewidth=1.4, zorder=5)


def _interval(axes: Axes, y: float, value: Estimate, colour: str, size: float = 8, hollow: bool = False) -> None:
    if value.low is not None and value.high is not None and not hollow:
        axes.plot((value.low, value.high), (y, y), color=colour, linewidth=size * 0.55, alpha=0.4)
    face = SURFACE if hollow else colour
    axes.plot(value.value, y, "o", markersize=size, color=face, markeredgecolor=colour, markeredgewidth=1.6, zorder=3)


def _reference_line(axes: Axes, reference: float | None) -> None:
    if reference is not None:
        axes.axvline(reference, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)


def _label_rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), ["\n".join(map(shorten, label.split("\n"))) for label in labels])
    axes.tick_params(axis="y", labelcolor=INK, labelsize=12)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(False)


def _value_axis(axes: Axes, limits: tuple[float, float], write: Writer) -> None:
    low, high = limits
    pad = 0.02 * (high - low)
    axes.set_xlim(low - pad, high + pad)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))


def _equal_decimals() -> ScalarFormatter:
    """As many decimals at every mark as tell the marks apart."""
    formatter = ScalarFormatter(useOffset=False)
    formatter.set_scientific(False)
    return formatter


def _spoken(value: Estimate, write: Writer) -> str:
    if value.low is None or value.high is None:
        return write(value.value)
    return f"{write(value.value)} ({write(value.low)} to {write(value.high)})"


def curves(
    series: Sequence[Curve], *, name: str, what: str, axis: tuple[str, bool], dashed: Mapping[str, tuple[float, str]]
) -> Markup:
    """Points with their intervals over a common axis; a cross at its foot where nothing could be measured.

    axis: its name, and whether it is logarithmic, with 0 at the left. dashed: label -> value and colour of a line.
    """
    label, log = axis

    def paint(axes: Axes) -> None:
        for value, colour in dashed.values():
            axes.axhline(value, color=colour, linewidth=1.3, linestyle=(0, (4, 2.5)), zorder=1)
        for curve in series:
            for x, found in zip(curve.xs, curve.estimates, strict=True):
                if found.low is not None and found.high is not None:
                    axes.plot((x, x), (found.low, found.high), color=curve.colour, linewidth=4, alpha=0.35)
            ys = [found.value for found in curve.estimates]
            axes.plot(curve.xs, ys, color=curve.colour, marker="o", markersize=4.5, zorder=3)
            foot = axes.get_xaxis_transform()
            axes.plot(
                curve.lost,
                [0.03] * len(curve.lost),
                "x",
                color=curve.colour,
                markersize=8,
                transform=foot,
                clip_on=False,
            )
        axes.set_xlabel(label)
        axes.margins(x=0.05, y=0.1)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(_equal_decimals())
        places = [x for curve in series for x in (*curve.xs, *curve.lost)]
        if log:
            _log_axis(axes, places)
        elif all(float(x).is_integer() for x in places):
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    parts = [
        f"{curve.label} "
        + ", ".join(f"{decimal(y.value)} at {x:.4g}" for x, y in zip(curve.xs, curve.estimates, strict=True))
        for curve in series
    ]
    return draw(paint, name=name, description=f"{what}, over {label}: {'; '.join(parts)}.", height=240)


def _log_axis(axes: Axes, xs: Sequence[float]) -> None:
    smallest = min((x for x in xs if x > 0), default=1.0)
    axes.set_xscale("symlog", linthresh=smallest, linscale=0.6)
    powers = [10.0**power for power in range(-8, 9) if smallest * 0.99 <= 10.0**power <= max(xs) * 1.01]
    marks = [*([0.0] if min(xs) <= 0 else []), *(powers if len(powers) > 1 else [smallest, max(xs)])]
    axes.set_xlim(0 if min(xs) <= 0 else smallest / 1.3, max(xs) * 1.3)
    axes.xaxis.set_major_locator(FixedLocator(marks))
    axes.xaxis.set_minor_locator(FixedLocator([]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
