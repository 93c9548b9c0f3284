"""Points at which a test can hold a run still. Without WORKER_HOOKS_DIR: nothing."""

from pathlib import Path
from typing import Final

from sessiond_common import fault_points

POINTS: Final = ("before-lease", "lease-granted", "turn-recorded", "in-turn", "result-received", "recorded")
"""before-lease: the task is claimed; turn-recorded: not sent yet; result-received: not recorded yet; recorded: the
task has ended, its lease is not given back yet."""


def hold(directory: Path | None, point: str) -> None:
    """Writes this process's pid to `<point>.reached`, and waits while `<point>.hold` is there."""
    if directory is not None:
        fault_points.hold(point, directory)


def note(directory: Path | None, *words: object) -> None:
    """Appends a line to `runs`: for the proof that a task never runs twice at once."""
    if directory is not None:
        with (directory / "runs").open("a") as file:
            file.write(" ".join(map(str, words)) + "\n")
