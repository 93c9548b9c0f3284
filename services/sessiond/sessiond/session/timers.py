"""The timers of one session, on this process's monotonic clock.

The machines name the timers that a state needs. Each timer runs from the step that first needs it. `restart` gives
every timer its full time again after Redis was away or after the process stopped for a while. During that time the
owner could not serve its callers.
"""

import time
from collections.abc import Callable, Hashable, Mapping
from typing import Final, Generic, Literal, TypeVar

from sessiond.lock import events as ev

LONGEST_SLEEP: Final = 1.0
"""Seconds after which the owner loop checks its timers at the latest."""
STALL_SECONDS: Final = LONGEST_SLEEP + 2.0
"""If the loop did not check its timers for so long, the whole process stopped for a while."""
FIRED: Final = float("inf")
"""The due time of a timer that expired and was passed to its machine."""
INSTANT: Final = 1e-6

SessionTimer = tuple[Literal["lock"], ev.Timer] | tuple[Literal["agent"], tuple[str, str]]
"""Which machine needs the timer, and the timer as that machine names it."""

K = TypeVar("K", bound=Hashable)


class Timers(Generic[K]):
    """Maps each timer to the time at which it expires."""

    def __init__(self) -> None:
        self._due: dict[K, float] = {}
        self._durations: dict[K, float] = {}
        self.checked_at = time.monotonic()
        """When `pop_due` last ran. No timer expires between two of its calls."""

    def unchecked_seconds(self) -> float:
        """Return the seconds since `checked_at`."""
        return time.monotonic() - self.checked_at

    def update(self, timers: Mapping[K, float]) -> None:
        """Set the timers that the current state needs, with their seconds: start new ones, drop all others."""
        now = time.monotonic()
        self._due = {key: self._due.get(key, now + seconds) for key, seconds in timers.items()}
        self._durations = dict(timers)

    def renew(self, key: K) -> None:
        """Start a timer again, if it runs."""
        if key in self._due:
            self._due[key] = time.monotonic() + self._durations[key]

    def restart(self, *, keep: Mapping[K, float] | None = None) -> None:
        """Start all timers again; a timer in `keep` gets the seconds given there."""
        now = self.checked_at = time.monotonic()
        kept, before = keep or {}, self._due
        self._due = {}
        # A tiny time apart, so that the timers still expire in the same order.
        for place, key in enumerate(sorted(self._durations, key=before.__getitem__)):
            self._due[key] = now + kept.get(key, self._durations[key]) + place * INSTANT

    def left(self, key: K, since: float | None = None) -> float | None:
        """Return the seconds until a timer expires, from now or from the time `since`.

        The result is 0 for an expired timer and None for one that does not run.
        """
        if key not in self._due:
            return None
        at = self._due[key]
        left = at - (time.monotonic() if since is None else since)
        return 0.0 if at == FIRED else min(self._durations[key], max(0.0, left))

    def until_next(self, at_most: float) -> float:
        """Return the seconds until the next timer expires."""
        if not self._due:
            return at_most
        return max(0.0, min(at_most, min(self._due.values()) - time.monotonic()))

    def pop_due(self, until: Callable[[K], float | None] = lambda _: None) -> list[K]:
        """Return the expired timers, earliest first. Each is returned once, until a state needs it again.

        `until` may return a time for a timer. A timer that expired later is held back, because an item that arrived
        before that time is still unread.
        """
        now = self.checked_at = time.monotonic()
        over = [key for key, at in self._due.items() if at <= now]
        ready = [key for key in over if (limit := until(key)) is None or self._due[key] <= limit]
        found = sorted(ready, key=self._due.__getitem__)
        for key in found:
            self._due[key] = FIRED
        return found
