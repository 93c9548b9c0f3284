"""Jobs for the tests of rq. Each records in a file what happens to it."""

import os
import time
from pathlib import Path

from sessiond_common.jobs.worker import Stopped, interruptible, stopping


def say(path: str, *words: object) -> None:
    with Path(path).open("a") as file:
        file.write(" ".join(map(str, words)) + "\n")


def greet(path: str, word: object) -> str:
    say(path, "greet", word)
    return "a result"


def fail(path: str) -> None:
    say(path, "fail")
    raise ValueError("the job's own fault")


def wait(path: str, until: str) -> None:
    """Begins, waits for a file, ends."""
    say(path, "begin", os.getpid())
    while not Path(until).exists():
        time.sleep(0.01)
    say(path, "end", os.getpid())


def patient(path: str) -> None:
    """Waits until it is told to stop."""
    say(path, "begin", os.getpid())
    stopping().wait(30)
    say(path, "told", stopping().is_set())


def blocked(path: str) -> None:
    """Sits in a call that only a signal ends."""
    say(path, "begin", os.getpid())
    try:
        with interruptible():
            time.sleep(30)
    except Stopped:
        say(path, "broken off")
