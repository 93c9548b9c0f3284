"""Sample jobs for the tests of rq. Each job records its progress in a file."""

import os
import time
from pathlib import Path

from sessiond_common.jobs.worker import Stopped, interruptible, stopping


def record(path: str, *words: object) -> None:
    with Path(path).open("a") as file:
        file.write(" ".join(map(str, words)) + "\n")


def greet(path: str, word: object) -> str:
    record(path, "greet", word)
    return "a result"


def fail(path: str) -> None:
    record(path, "fail")
    raise ValueError("the job's own fault")


def wait(path: str, until: str) -> None:
    """Wait until the file `until` exists."""
    record(path, "begin", os.getpid())
    while not Path(until).exists():
        time.sleep(0.01)
    record(path, "end", os.getpid())


def stoppable(path: str) -> None:
    """Wait until the worker asks the job to stop."""
    record(path, "begin", os.getpid())
    stopping().wait(30)
    record(path, "stopping", stopping().is_set())


def blocked(path: str) -> None:
    """Block in a call that only a signal interrupts."""
    record(path, "begin", os.getpid())
    try:
        with interruptible():
            time.sleep(30)
    except Stopped:
        record(path, "interrupted")
