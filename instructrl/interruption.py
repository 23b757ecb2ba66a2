"""SIGINT and SIGTERM: a step that saves what it did is finished first, anything else ends at once.

Inside `finishing` a signal is written down, and looked at where the step is over, for which a second SIGINT does not
wait. A process that torchrun has started never ends at once, which the others could not tell from a failure, and it
gets the SIGINT of the terminal twice, once by way of its parent: there a signal waits for the next look.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_wished: signal.Signals | None = None
_finishing = False


class Interrupted(BaseException):
    """A signal has come. Not an Exception: nothing on the way treats it as a failure.

    at_once: whether it ended something in the middle; else a step is over and saved. exit_code: 128 and the signal's
    number, as shells have it.
    """

    def __init__(self, found: signal.Signals, *, at_once: bool = False) -> None:
        super().__init__(found.name)
        self.at_once = at_once
        self.exit_code = 128 + found


def wished() -> signal.Signals | None:
    """The signal that has come to this process."""
    return _wished


@contextmanager
def finishing() -> Iterator[None]:
    """Inside, whoever works looks for a wish after each step, and saves before it leaves."""
    global _finishing
    before, _finishing = _finishing, True
    try:
        yield
    finally:
        _finishing = before


@contextmanager
def heeded() -> Iterator[None]:
    """Inside, signals are treated so. Outside of the main thread, which alone may ask for them, nothing changes."""
    global _wished
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _heed) for number in _SIGNALS}
    try:
        yield
    finally:
        _wished = None
        for number, handler in before.items():
            signal.signal(number, handler)


def _heed(number: int, frame: FrameType | None) -> None:
    global _wished
    found, first = signal.Signals(number), _wished is None
    launched = "TORCHELASTIC_RUN_ID" in os.environ
    if not launched and (not _finishing or (not first and found == signal.SIGINT)):
        raise Interrupted(found, at_once=True)
    if first and os.environ.get("RANK", "0") == "0":
        what = "finishing this step, then saving and stopping" if _finishing else "stopping when all processes can"
        again = "another SIGINT (Ctrl-C)" if found == signal.SIGINT else "SIGINT (Ctrl-C)"
        hint = "" if launched else f"; {again} stops at once, without saving"
        os.write(2, f"\n{found.name}: {what}{hint}\n".encode())
    _wished = found
