"""Points at which a test can hold the service still. Without `hooks_dir` in the settings: nothing."""

from typing import Final

import gevent

from sessiond.settings import Settings

POINTS: Final = ("before-turn", "turn-accepted", "question")
"""before-turn: a turn is asked for, the loop has not seen it; turn-accepted: committed, nothing written;
question: the agent asks for permission, and has no answer yet (the loop itself goes on)."""


def hold(settings: Settings, point: str) -> None:
    """Says `<point>.reached` in the hooks directory, and waits while `<point>.hold` is there."""
    if settings.hooks_dir is None:
        return
    held = settings.hooks_dir / f"{point}.hold"
    if held.exists():
        (settings.hooks_dir / f"{point}.reached").touch()
        while held.exists():
            gevent.sleep(0.01)
