"""The deadlines of one session, on this process's monotonic clock.

The machines say which timers a state asks for; here each runs from the step at which it was first
asked for. `restart` gives all of them their full time again: after Redis was away, or after this
process stood still, nobody is punished for time in which the owner could not have listened.
"""

import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Final

GIVEN: Final = float("inf")
"""Has run out, and was given to the machine."""
INSTANT: Final = 1e-6


class Deadlines:
    """Timer to the moment it runs out."""

    def __init__(self) -> None:
        self._due: dict[Hashable, float] = {}
        self._wanted: dict[Hashable, float] = {}
        self.seen = time.monotonic()
        """When it was last asked what is due: since then nothing could run out."""

    def unseen(self) -> float:
        """Seconds since `seen`."""
        return time.monotonic() - self.seen

    def want(self, timers: Mapping[Hashable, float]) -> None:
        """The timers of the state now, with their seconds: new ones start, others than these end."""
        now = time.monotonic()
        self._due = {key: self._due.get(key, now + seconds) for key, seconds in timers.items()}
        self._wanted = dict(timers)

    def renew(self, key: Hashable) -> None:
        """Starts one again, if it runs."""
        if key in self._due:
            self._due[key] = time.monotonic() + self._wanted[key]

    def restart(self, *, keep: Mapping[Hashable, float] | None = None) -> None:
        """Starts all again; those in `keep` with the seconds given there."""
        now = self.seen = time.monotonic()
        kept, before = keep or {}, self._due
        self._due = {}
        # An instant apart: what would have run out first still does.
        for place, key in enumerate(sorted(self._wanted, key=before.__getitem__)):
            self._due[key] = now + kept.get(key, self._wanted[key]) + place * INSTANT

    def left(self, key: Hashable, since: float | None = None) -> float | None:
        """Seconds until it runs out, from now or from the moment `since`; 0 if it has, None if it does not run."""
        if key not in self._due:
            return None
        at = self._due[key]
        left = at - (time.monotonic() if since is None else since)
        return 0.0 if at == GIVEN else min(self._wanted[key], max(0.0, left))

    def until_next(self, at_most: float) -> float:
        """Seconds until the next one runs out."""
        if not self._due:
            return at_most
        return max(0.0, min(at_most, min(self._due.values()) - time.monotonic()))

    def pop_due(self, until: Callable[[Any], float | None] = lambda _: None) -> list[Hashable]:
        """The timers that have run out, earliest first. Each is given once, until it is wanted anew.

        `until` may hold one back that ran out after this moment: what came in before it is still to be heard.
        """
        now = self.seen = time.monotonic()
        over = [key for key, at in self._due.items() if at <= now]
        heard = [key for key in over if (limit := until(key)) is None or self._due[key] <= limit]
        found = sorted(heard, key=self._due.__getitem__)
        for key in found:
            self._due[key] = GIVEN
        return found
