"""How many agents may be awake at once, over all sessions of this process."""

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from gevent.event import Event


class Sleeper(Protocol):
    """Whoever holds a slot and may be asked to give it up."""

    def may_sleep(self) -> float | None:
        """Seconds for which it has been idle; None while it is needed."""

    def sleep_now(self) -> None:
        """Asks it to end its agent. Never blocks."""


@dataclass(eq=False, slots=True)
class _Waiting:
    who: Sleeper
    told: Event = field(default_factory=Event)
    given: bool = False


class Slots:
    """First come, first served. A waiting session puts the longest idle agent to sleep."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._holders: list[Sleeper] = []
        self._waiting: deque[_Waiting] = deque()

    def take(self, who: Sleeper) -> bool:
        """Blocks its greenlet until `who` has a slot, then True; False once it was told to `forgo`."""
        if self._free > 0:
            self._free -= 1
            self._holders.append(who)
            return True
        waiting = _Waiting(who)
        self._waiting.append(waiting)
        self._make_room()
        while not waiting.told.wait(0.5):
            self._make_room()
        return waiting.given

    def forgo(self, who: Sleeper) -> None:
        """`who` waits for a slot no longer; if it does not wait, nothing happens."""
        for waiting in [w for w in self._waiting if w.who is who]:
            self._waiting.remove(waiting)
            waiting.told.set()

    def give(self, who: Sleeper) -> None:
        """`who` needs its slot no longer; without one, nothing happens."""
        if who not in self._holders:
            return
        self._holders.remove(who)
        if self._waiting:
            first = self._waiting.popleft()
            self._holders.append(first.who)
            first.given = True
            first.told.set()
        else:
            self._free += 1

    def _make_room(self) -> None:
        idle = [(seconds, i) for i, h in enumerate(self._holders) if (seconds := h.may_sleep()) is not None]
        if idle:
            self._holders[max(idle)[1]].sleep_now()
