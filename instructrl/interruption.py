"""SIGINT and SIGTERM as a wish: whoever works finishes its step, saves, and leaves.

The first signal is written down, and looked at wherever a step is over; a second SIGINT stops at once, as without this.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_wished: signal.Signals | None = None


class Interrupted(BaseException):
    """A step is over and a signal had come. Not an Exception: nothing on the way treats it as a failure.

    exit_code: 128 and the signal's number, as shells have it.
    """

    def __init__(self, found: signal.Signals) -> None:
        super().__init__(found.name)
        self.exit_code = 128 + found


def wished() -> bool:
    """Whether a signal has come."""
    return _wished is not None


def leave_if_wished() -> None:
    """Raise `Interrupted` where a signal has come."""
    if _wished is not None:
        raise Interrupted(_wished)


@contextmanager
def heeded() -> Iterator[None]:
    """Inside, signals are written down. Outside of the main thread, which alone may ask for them, nothing changes."""
    global _wished
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _write_down) for number in _SIGNALS}
    try:
        yield
    finally:
        _wished = None
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_down(number: int, frame: FrameType | None) -> None:
    global _wished
    if _wished is not None and number == signal.SIGINT:
        raise KeyboardInterrupt
    _wished = signal.Signals(number)
    os.write(2, f"\n{_wished.name}: this step is finished and saved first; SIGINT stops at once\n".encode())
