"""Fault points: places in the code where a test pauses a process, to kill it or to change something during the pause.

A test creates `<point>.hold` in a directory. A process that reaches the point writes its pid to `<point>.reached`
and waits until the test removes the `.hold` file. Without a directory, a fault point does nothing.
"""

import os
import time
from pathlib import Path
from typing import Final

POLL_SECONDS: Final = 0.01


def hold(point: str) -> None:
    """Wait at a fault point of the directory that `HOOKS_DIR` names; return at once without `HOOKS_DIR`."""
    directory = os.environ.get("HOOKS_DIR")
    hold_in(Path(directory) if directory else None, point)


def hold_in(directory: Path | None, point: str) -> None:
    """Wait at a fault point of this directory; return at once for None.

    `point` may name a subdirectory (`session/decided.taken`), which must exist. Under gevent's monkey patching only
    the calling greenlet waits.
    """
    if directory is None:
        return
    held = directory / f"{point}.hold"
    if held.exists():
        (directory / f"{point}.reached").write_text(str(os.getpid()))
        while held.exists():
            time.sleep(POLL_SECONDS)


def append_in(directory: Path | None, name: str, *words: object) -> None:
    """Append the words as one line to a file of this directory; do nothing for None."""
    if directory is not None:
        with (directory / name).open("a") as file:
            file.write(" ".join(map(str, words)) + "\n")
