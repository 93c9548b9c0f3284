"""Points at which a test can hold the service still. Without `hooks_dir` in the settings: nothing."""

from collections.abc import Sequence
from typing import Any, Final

import gevent

from sessiond.settings import Settings

POINTS: Final = ("before-turn", "question")
"""before-turn: a turn is asked for, the loop has not seen it; question: the agent asks for permission, and has
no answer yet (the loop itself goes on)."""

STEP_POINTS: Final = ("decided", "committed", "acted")
"""Of each step: decided, nothing written; committed, nothing done; done, but the loop has not gone on."""


def hold(settings: Settings, point: str) -> None:
    """Says `<point>.reached` in the hooks directory, and waits while `<point>.hold` is there."""
    if settings.hooks_dir is None:
        return
    held = settings.hooks_dir / f"{point}.hold"
    if held.exists():
        (settings.hooks_dir / f"{point}.reached").touch()
        while held.exists():
            gevent.sleep(0.01)


def hold_step(settings: Settings, session: str, point: str, ledger: Sequence[tuple[str, Any]]) -> None:
    """Holds one session's loop at `<session>/<point>.<event>`, for each event that the step writes into the ledger.

    A step that writes none is `quiet`.
    """
    if settings.hooks_dir is not None:
        for event in [event for event, _ in ledger] or ["quiet"]:
            hold(settings, f"{session}/{point}.{event}")
