"""Files and folders that are whole or not there, whatever ends the process or the machine.

A process that is killed leaves what it wrote; a machine without power leaves what an fsync has covered, and of the rest
anything: a name without its content, or content under the name of before. So everything here is written aside, flushed
and renamed, and the folder is flushed in which the new name stands.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

# What is said of folders that cannot be flushed: on file systems of a network, which often keep names by themselves,
# and where a folder may be written into and not read.
_NO_FLUSH_OF_FOLDERS = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES}


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk; of a folder, where the file system can do it."""
    try:
        _sync(path)
    except OSError as error:
        if error.errno not in _NO_FLUSH_OF_FOLDERS or not path.is_dir():
            raise


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all(folder: Path) -> None:
    """Wait until a folder and everything below it are on the disk, but for its own name."""
    for path in folder.iterdir():
        if path.is_dir():
            sync_all(path)
        else:
            sync(path)
    sync(folder)


def make_folder(path: Path) -> None:
    """Make a folder, with those above it that are missing, and wait until their names are on the disk."""
    if not path.parent.exists():
        make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync(path.parent)  # of a folder that was there, too: whoever made it may not have come to this


def rename(aside: Path, final: Path) -> None:
    """Give what is on the disk its name. A file may have had that name before."""
    aside.replace(final)
    sync(final.parent)


def remove(path: Path) -> None:
    """Remove a file or a folder, where there is one, for good. A link is removed and not followed."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
    else:
        return
    sync(path.parent)


def aside_of(path: Path) -> Path:
    """Where a file is written until it is whole."""
    return path.with_name(f"{path.name}.writing")


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """What is written inside becomes the file at the end. After an error, what was there before is still there."""
    aside = aside_of(path)
    aside.unlink(missing_ok=True)  # a link there is not followed
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        rename(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """A file of this content."""
    with whole_file(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """A file of this text, in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, which whoever writes makes. It gets its name at the end; one that has it gives way."""
    aside = path.with_name(f"writing-{path.name}")
    make_folder(path.parent)
    remove(aside)
    try:
        yield aside
        sync_all(aside)
        remove(path)
        rename(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
