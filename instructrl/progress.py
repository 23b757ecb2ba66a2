"""Progress lines: what is worked on, how much of it is done, and how long the rest takes.

Whoever goes through much opens a `wait` and counts what is done. Where a display is on, a line shows it; elsewhere, as
in a library's use, nothing happens. A wait inside of another has a line below it.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

T = TypeVar("T")

# Seconds after which a wait is worth a line on a terminal, and those between two lines in a log.
SHOWN_AFTER, LOGGED_EVERY = 2.0, 60.0
_LOG_WIDTH = 100
_BAR, _LONGEST_BAR = 10, 28


class Line:
    """What is known of one thing that is being waited for.

    total: how much there is to do, None where nobody knows. lasting: whether its last state stays on the screen, and
    whether it is shown from its beginning. unit: what `units` counts, for the rate.
    """

    def __init__(self, name: str, total: int | None, *, lasting: bool = False, unit: str = "") -> None:
        self.name, self.total, self.lasting, self.unit = name, total, lasting, unit
        self.done, self.units = 0, 0.0
        self.notes: Sequence[str] = ()
        self.over = False
        self.start = self.logged_at = time.monotonic()

    def shown(self) -> bool:
        """Whether it is worth a line by now."""
        return self.lasting or time.monotonic() - self.start >= SHOWN_AFTER

    def text(self, width: int) -> str:
        """Name, share done, time left and one number whatever the width; of the bar and the rest what has room."""
        count = "" if self.total is None else f"{self.done:,}/{self.total:,}"
        number, *notes = [*self.notes, ""] if self.notes else [count, ""]
        needed = [part for part in (self._share(), self._time(), number) if part]
        room = width - sum(len(part) + 1 for part in needed)
        name = _cut(self.name, max(room, 1))
        room -= len(name)
        bar = _BAR if self.total and room > _BAR else 0
        room -= bar + 1 if bar else 0
        further = []
        for part in (count if self.notes else "", self._rate(), *notes):
            if part and room > len(part):
                further.append(part)
                room -= len(part) + 1
        if bar and self.total:
            bar += min(room, _LONGEST_BAR - _BAR)
            full = bar * self.done // self.total
            name += " " + "━" * full + "╌" * (bar - full)
        return " ".join([name, *needed, *further])

    def _share(self) -> str:
        return "" if self.total is None else f"{100 * self.done // max(self.total, 1):3}%"

    def _time(self) -> str:
        seconds = time.monotonic() - self.start
        if self.over or self.total is None:
            return f"in {_clock(seconds)}" if self.over else _clock(seconds)
        return f"{_clock(seconds / self.done * (self.total - self.done)) if self.done else '-:--:--'} left"

    def _rate(self) -> str:
        if not self.units:
            return ""
        rate = self.units / max(time.monotonic() - self.start, 1e-9)
        return f"{f'{rate / 1000:.1f}k' if rate >= 1000 else f'{rate:.1f}'} {self.unit}/s"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _cut(name: str, width: int) -> str:
    """Of a path its end, of other names their beginning."""
    if len(name) <= width:
        return name
    return "…" + name[len(name) - width + 1 :] if "/" in name else name[: width - 1] + "…"


class Display:
    """The lines on one console: drawn over and over on a terminal, written now and then where there is none."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._lines: list[Line] = []
        self._live: Live | None = None
        self._drawn = console.is_terminal and not console.is_dumb_terminal and not console.quiet

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in [*self._lines]:
            if line.shown():
                yield Text(line.text(options.max_width), no_wrap=True, overflow="ellipsis")

    @contextmanager
    def of(self, line: Line) -> Iterator[Callable[..., None]]:
        """Show a line. Gives (steps done, *notes) -> None, which moves it."""

        def advance(steps: int = 1, *notes: str) -> None:
            line.done += steps
            line.notes = notes or line.notes
            if not self._drawn and time.monotonic() - line.logged_at >= LOGGED_EVERY:
                self._write(line)

        self._lines.append(line)
        if self._drawn and self._live is None:
            self._live = Live(self, console=self.console, transient=True, refresh_per_second=4)
            self._live.start()
        try:
            yield advance
        finally:
            if line in self._lines:  # the display may have been closed
                self._lines.remove(line)
                if not self._lines:
                    self.close()
                line.over = True
                if line.lasting or (not self._drawn and line.logged_at > line.start):
                    self._write(line)

    def close(self) -> None:
        """Leave the console to others, also where a wait was broken off and does not know it yet."""
        self._lines.clear()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _write(self, line: Line) -> None:
        line.logged_at = time.monotonic()
        width = self.console.width if self._drawn else _LOG_WIDTH
        self.console.print(Text(line.text(width)), soft_wrap=True)


_display: ContextVar[Display | None] = ContextVar("display", default=None)


@contextmanager
def shown_on(console: Console) -> Iterator[Display]:
    """Inside, every wait has its line on this console: on the display that is on it already, or on one of its own."""
    before = _display.get()
    if before is not None and before.console is console:
        yield before
        return
    display = Display(console)
    token = _display.set(display)
    try:
        yield display
    finally:
        display.close()
        _display.reset(token)


def console() -> Console | None:
    """Where waits are shown; None where they are not."""
    display = _display.get()
    return None if display is None else display.console


@contextmanager
def wait(name: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """Something that takes long where there is much of it. Gives (how much more of `total` is done) -> None."""
    display = _display.get()
    if display is None:
        yield _nobody_looks
    else:
        with display.of(Line(name, total)) as advance:
            yield advance


def through(name: str, rows: Iterable[T], total: int | None = None) -> Iterator[T]:
    """The rows one after the other, with a line for the wait. total: how many there are, where they have no length."""
    with wait(name, len(rows) if isinstance(rows, Sized) else total) as advance:
        for row in rows:
            yield row
            advance()


def _nobody_looks(steps: int = 1) -> None:
    pass
