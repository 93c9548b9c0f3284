"""Points at which a test can hold the service still. Without `hooks_dir` in the settings: nothing."""

from typing import Final

import gevent

from sessiond.settings import Settings

POINTS: Final = ("before-turn", "turn-accepted")
"""before-turn: a turn is asked for, the loop has not seen it; turn-accepted: committed, nothing written."""


def hold(settings: Settings, point: str) -> None:
    """Says `<point>.reached` in the hooks directory, and waits while `<point>.hold` is there."""
    if settings.hooks_dir is None:
        return
    held = settings.hooks_dir / f"{point}.hold"
    if held.exists():
        (settings.hooks_dir / f"{point}.reached").touch()
        while held.exists():
            gevent.sleep(0.01)
