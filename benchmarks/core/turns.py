"""Processes that take turns: what one does is measured while the others wait. Imports nothing of ours."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any


class Worker:
    """A process that waits for its turns. settings: as of `subprocess.Popen`."""

    def __init__(self, command: list[str], **settings: Any) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, text=True, **pipes, **settings)
        self._hear()

    def _hear(self) -> Any:
        """The next message; what a library prints in between is dropped."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise RuntimeError(f"{self.process.args}: ended with exit code {self.process.wait()}")

    def turn(self, word: str = "go") -> Any:
        """Let it do its work once; what it says of it."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return self._hear()

    def end(self) -> Any:
        """Its last message."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        found = self._hear()
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
