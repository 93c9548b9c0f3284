"""Files that only this user can read (mode 0600). A reader sees the whole old text or the whole new one."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


def write_private(path: Path, text: str) -> None:
    """Write or replace a file atomically. A crash of the machine may lose the new text.

    Raises:
        OSError: the file cannot be written; what was there is unchanged.
    """
    with _replacing(path) as file:
        file.write(text)


def write_durable(path: Path, text: str) -> None:
    """Write or replace a file atomically. Returns when the text and its name are on disk.

    Raises:
        OSError: the file cannot be written, or a crash of the machine may lose it. What was there before is unchanged,
            unless only the directory could not be synchronized.
    """
    with _replacing(path) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems do not synchronize directories
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            yield file
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
