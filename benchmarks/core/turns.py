"""Processes that take turns: what one does is measured while the others wait. Imports nothing of ours."""

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO


class Worker:
    """A process that waits for its turns.

    log: where what a library prints goes; it is dropped where there is none. patience: seconds until it is ready.
    settings: as of `subprocess.Popen`.
    """

    def __init__(
        self, command: list[str], log: TextIO | None = None, patience: float | None = None, **settings: Any
    ) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
        self.process = subprocess.Popen(command, text=True, **pipes, **settings)
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._listen, args=(log,), daemon=True).start()
        self.hear(patience)

    def _listen(self, log: TextIO | None) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("@"):
                self._messages.put(json.loads(line[1:]))
            elif log is not None:
                print(line, end="", file=log, flush=True)
        self._messages.put(None)

    def hear(self, seconds: float | None = None) -> Any:
        """The next message. TimeoutError where none comes in time, RuntimeError where the process ended."""
        try:
            found = self._messages.get(timeout=None if seconds is None else max(0.0, seconds))
        except queue.Empty:
            raise TimeoutError(f"{self.process.args}: said nothing for {seconds:.0f} s") from None
        if found is None:
            raise RuntimeError(f"{self.process.args}: ended with exit code {self.process.wait()}")
        return found

    def ask(self, word: str = "go") -> None:
        """Let it do its work once."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def turn(self, word: str = "go") -> Any:
        """What it says of its work, done once."""
        self.ask(word)
        return self.hear()

    def end(self) -> Any:
        """Its last message."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        found = self.hear()
        self.process.wait()
        return found


def turns() -> Iterator[str]:
    """In such a process: the word of each turn. Says so when it is ready."""
    say({"ready": True})
    for line in sys.stdin:
        yield line.strip()


def say(message: object) -> None:
    """One line to the driver, past whatever a library prints."""
    print("@" + json.dumps(message), flush=True)
