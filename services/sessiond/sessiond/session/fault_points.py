"""The fault points of a session: where a test stops its loop or one of its calls (`sessiond_common.fault_points`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from sessiond_common.fault_points import hold_in

POINTS: Final = ("before-turn", "question")
"""before-turn: a turn is requested, the loop has not seen it; question: the agent asks for permission and has no
answer yet (the loop itself goes on)."""

STEP_POINTS: Final = ("decided", "committed", "acted")
"""Of each step: decided, nothing is written; committed, no effect is done; acted, the loop has not gone on."""


def hold_step(directory: Path | None, session: str, point: str, ledger: Sequence[tuple[str, Any]]) -> None:
    """Hold one session's loop at `<session>/<point>.<event>`, for each event that the step writes into the ledger.

    A step that writes none is `quiet`.
    """
    if directory is not None:
        for event in [event for event, _ in ledger] or ["quiet"]:
            hold_in(directory, f"{session}/{point}.{event}")
