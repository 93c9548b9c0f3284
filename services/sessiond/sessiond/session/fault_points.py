"""The fault points of a session, where a test pauses its loop or one of its calls (`sessiond_common.fault_points`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from sessiond_common.fault_points import hold_in

BEFORE_TURN: Final = "before-turn"
"""A turn is requested, and the loop has not read the command."""
QUESTION: Final = "question"
"""The agent asks for permission and has no answer yet. The loop itself goes on."""

STEP_POINTS: Final = ("decided", "committed", "acted")
"""Of each step: decided, nothing is written; committed, no effect is done; acted, the loop has not gone on."""


def hold(directory: Path | None, point: str) -> None:
    """Hold the calling greenlet at `BEFORE_TURN` or `QUESTION`."""
    hold_in(directory, point)


def hold_step(directory: Path | None, session: str, point: str, ledger: Sequence[tuple[str, Any]]) -> None:
    """Hold one session's loop at `<session>/<point>.<event>`, for each event that the step writes into the ledger.

    A step that writes none is `quiet`.
    """
    if directory is not None:
        for event in [event for event, _ in ledger] or ["quiet"]:
            hold_in(directory, f"{session}/{point}.{event}")
