"""What a folder may look like after the power went, at any moment of a run that was recorded.

`recorded_writes.c` writes down every call that changes a file below one folder; `Disk` carries them out again, up to
any of them, and keeps apart what POSIX promises from what it does not:

- what a file holds is on the disk once `fsync` of the file has returned;
- names (of new files and folders, after a rename, after a removal) once `fsync` of the folder that they stand in has;
- whatever came later may be there or not, in any order and any combination: a name without its content, content without
  its length, some blocks of a write and not others. A rename inside a folder happens as a whole or not at all.

The folder itself is there from the start.
"""

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeAlias

SOURCE = Path(__file__).with_name("recorded_writes.c")
BLOCK = 4096
# How many words stand before the last path of a record, which has spaces of its own, and what divides them.
_WORDS = {"open": (" ", 1), "write": (" ", 2), "truncate": (" ", 1), "rename": ("\t", 1)}


@dataclass(frozen=True, slots=True)
class Call:
    """One record. words: what stands behind the name of the call. content: of a write."""

    name: str
    words: tuple[str, ...]
    content: bytes = b""


@dataclass(slots=True, eq=False)
class File:
    """content: as programs see it. durable: as of the last fsync. pending: changes since, oldest first: (where, bytes)
    of a write, (size, None) of a truncation."""

    content: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def change(self, place: int, content: bytes | None) -> None:
        _apply(self.content, place, content)
        self.pending.append((place, content))

    def sync(self) -> None:
        self.durable, self.pending = bytes(self.content), []


@dataclass(slots=True, eq=False)
class Folder:
    """names: as programs see them. durable: as of the last fsync. pending: changes since, oldest first, each to what
    some names stand for, None for nothing."""

    names: "dict[str, Node]" = field(default_factory=dict)
    durable: "dict[str, Node]" = field(default_factory=dict)
    pending: "list[dict[str, Node | None]]" = field(default_factory=list)

    def change(self, change: "dict[str, Node | None]") -> None:
        _rename(self.names, change)
        self.pending.append(change)

    def sync(self) -> None:
        self.durable, self.pending = dict(self.names), []


Node: TypeAlias = File | Folder
# Of every path below a folder what the file holds, None for a folder.
State: TypeAlias = dict[str, bytes | None]


@dataclass(frozen=True, slots=True)
class Loss:
    """How much of what no fsync covers is there after all. names: of changes to folders, all, none or a random half.
    content: of changes to files; "zeros" is their length without their bytes, "blocks" some of their blocks of 4096
    bytes and zeros for the others."""

    names: str
    content: str


LOSSES = {
    "nothing later than the last fsync": Loss("none", "none"),
    "everything": Loss("all", "all"),
    "any half of it": Loss("half", "half"),
    "names without content": Loss("all", "none"),
    "names, and zeros for content": Loss("all", "zeros"),
    "names, and some blocks": Loss("all", "blocks"),
    "some names, and some blocks": Loss("half", "blocks"),
    "content, and some names": Loss("half", "all"),
}


@dataclass(frozen=True, slots=True)
class Recorder:
    """`recorded_writes.c`, compiled. root: the folder to record. log: the file for it."""

    program: Path
    root: Path
    log: Path

    @classmethod
    def compiled(cls, folder: Path, root: Path, log: Path) -> "Recorder":
        """folder: for the program."""
        program = folder / "recorded_writes"
        subprocess.run(["cc", "-O1", "-o", str(program), str(SOURCE)], check=True)
        return cls(program, root.resolve(), log)

    @contextmanager
    def __call__(self, process: int) -> Iterator[None]:
        """Inside, it is recorded; it has to end there. Raises AssertionError where something could not be recorded."""
        words = [str(word) for word in (self.program, self.root, self.log, process)]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as recording:
            assert recording.stdout is not None
            assert recording.stdout.readline() == b"recording\n"
            yield
            assert recording.wait() == 0, "not everything could be recorded"


def calls(log: Path) -> list[Call]:
    """What was recorded."""
    found, content, place = [], log.read_bytes(), 0
    while place < len(content):
        end = content.index(b"\n", place)
        name, rest = content[place:end].decode().split(" ", 1)
        words = tuple(rest.split(*_WORDS.get(name, ("\n", 0))))
        place = end + 1 + (int(words[1]) if name == "write" else 0)
        found.append(Call(name, words, content[end + 1 : place]))
    return found


class Disk:
    """The folder `root` as calls make it."""

    def __init__(self, root: Path) -> None:
        self._root = PurePosixPath(root.resolve())
        self._top = Folder()

    def apply(self, call: Call) -> None:
        """Carry out one call. Raises KeyError or AssertionError where the record does not hold together."""
        match call.name, call.words:
            case "open", (flags, path):
                if path != str(self._root):
                    self._opened(path, int(flags))
            case "write", (place, _, path):
                self._file(path).change(int(place), call.content)
            case "truncate", (size, path):
                self._file(path).change(int(size), None)
            case "mkdir", (path,):
                folder, name = self._place(path)
                folder.change({name: Folder()})
            case "rename", (old, new):
                (folder, name), (other, becomes) = self._place(old), self._place(new)
                assert folder is other, f"{old}: moved into another folder, which no single fsync makes durable"
                folder.change({name: None, becomes: folder.names[name]})
            case "remove", (path,):
                folder, name = self._place(path)
                folder.change({name: None})
            case "fsync", (path,):
                self._node(path).sync()
            case _:
                raise AssertionError(call)

    def _place(self, path: str) -> tuple[Folder, str]:
        *above, name = PurePosixPath(os.path.normpath(path)).relative_to(self._root).parts
        folder = self._top
        for part in above:
            inner = folder.names[part]
            assert isinstance(inner, Folder), path
            folder = inner
        return folder, name

    def _node(self, path: str) -> Node:
        if path == str(self._root):
            return self._top
        folder, name = self._place(path)
        return folder.names[name]

    def _file(self, path: str) -> File:
        node = self._node(path)
        assert isinstance(node, File), path
        return node

    def _opened(self, path: str, flags: int) -> None:
        folder, name = self._place(path)
        if name not in folder.names:
            assert flags & os.O_CREAT, path
            folder.change({name: File()})
        node = folder.names[name]
        if flags & os.O_TRUNC and isinstance(node, File) and node.content:
            node.change(0, None)

    def after_power(self, loss: Loss, rng: random.Random) -> State:
        """What is there when the power is back."""
        return dict(_walk(self._top, loss, rng))

    def seen(self) -> State:
        """What programs see now."""
        return dict(_walk(self._top, LOSSES["everything"], random.Random(0)))


def _walk(folder: Folder, loss: Loss, rng: random.Random, above: str = "") -> Iterator[tuple[str, bytes | None]]:
    names = dict(folder.durable)
    for change in folder.pending:
        if loss.names == "all" or (loss.names == "half" and rng.random() < 0.5):
            _rename(names, change)
    for name, node in sorted(names.items()):
        path = f"{above}{name}"
        if isinstance(node, Folder):
            yield path, None
            yield from _walk(node, loss, rng, f"{path}/")
        else:
            yield path, _content(node, loss.content, rng)


def _content(file: File, kept: str, rng: random.Random) -> bytes:
    if kept == "all":
        return bytes(file.content)
    found = bytearray(file.durable)
    if kept == "none":
        return bytes(found)
    if kept == "zeros":
        size = len(file.content)
        return bytes(found[:size]) + bytes(max(size - len(found), 0))
    for place, content in file.pending:
        if content is None:
            if rng.random() < 0.5:
                _apply(found, place, None)
        elif kept == "half":
            if rng.random() < 0.5:
                _apply(found, place, content)
        else:
            _apply_blocks(found, place, content, rng)
    return bytes(found)


def _apply_blocks(found: bytearray, place: int, content: bytes, rng: random.Random) -> None:
    """Some blocks of a write. The length may be there without the bytes."""
    end = place + len(content)
    if len(found) < end and rng.random() < 0.5:
        found.extend(bytes(end - len(found)))
    for start in range(place - place % BLOCK, end, BLOCK):
        if rng.random() < 0.5:
            low, high = max(start, place), min(start + BLOCK, end)
            _apply(found, low, content[low - place : high - place])


def _apply(found: bytearray, place: int, content: bytes | None) -> None:
    size = place if content is None else place + len(content)
    if content is None:
        del found[size:]
    if len(found) < place:
        found.extend(bytes(place - len(found)))
    if content is not None:
        found[place:size] = content


def _rename(names: "dict[str, Node]", change: "dict[str, Node | None]") -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def write_out(state: State, folder: Path) -> None:
    """Make a folder of it."""
    folder.mkdir(parents=True)
    for name, content in state.items():
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)


def of_folder(folder: Path) -> State:
    """A folder as it is, in the form of `Disk.seen`."""
    return {str(p.relative_to(folder)): None if p.is_dir() else p.read_bytes() for p in sorted(folder.rglob("*"))}
