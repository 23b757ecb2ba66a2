"""SIGINT and SIGTERM as a wish: whoever works finishes its step, saves, and leaves.

The first signal is written down, and looked at wherever a step is over; a second SIGINT stops at once, as without this.
A process that torchrun has started gets the SIGINT of the terminal twice, once by way of its parent: there it waits.
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


def wished() -> signal.Signals | None:
    """The signal that has come to this process."""
    return _wished


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
    launched = "TORCHELASTIC_RUN_ID" in os.environ
    if _wished is not None and number == signal.SIGINT and not launched:
        raise KeyboardInterrupt
    if _wished is None and os.environ.get("RANK", "0") == "0":
        how = "" if launched else "; SIGINT stops at once"
        os.write(2, f"\n{signal.Signals(number).name}: this step is finished and saved first{how}\n".encode())
    _wished = signal.Signals(number)
