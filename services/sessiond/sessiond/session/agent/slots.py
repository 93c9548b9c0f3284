"""Limits the number of agents that are awake at once, over all sessions of this process."""

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from gevent.event import Event


class Sleeper(Protocol):
    """The owner of a slot, which may be asked to free it."""

    def may_sleep(self) -> float | None:
        """Return the seconds for which its agent has been idle; None while the agent is needed."""

    def sleep_now(self) -> None:
        """Ask the owner to end its agent. Never blocks."""


@dataclass(eq=False, slots=True)
class _SlotWait:
    owner: Sleeper
    over: Event = field(default_factory=Event)
    given: bool = False


class Slots:
    """A fixed number of slots, first come, first served. A waiting session puts the longest idle agent to sleep."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._owners: list[Sleeper] = []
        self._waits: deque[_SlotWait] = deque()

    def take(self, owner: Sleeper) -> bool:
        """Block this greenlet until `owner` has a slot. Returns False if `cancel_wait` ended the wait."""
        if self._free > 0:
            self._free -= 1
            self._owners.append(owner)
            return True
        wait = _SlotWait(owner)
        self._waits.append(wait)
        self._make_room()
        while not wait.over.wait(0.5):
            self._make_room()
        return wait.given

    def cancel_wait(self, owner: Sleeper) -> None:
        """End the owner's wait for a slot, if it waits."""
        for wait in [w for w in self._waits if w.owner is owner]:
            self._waits.remove(wait)
            wait.over.set()

    def give(self, owner: Sleeper) -> None:
        """Free the owner's slot, if it has one, and give it to the first session that waits."""
        if owner not in self._owners:
            return
        self._owners.remove(owner)
        if self._waits:
            first = self._waits.popleft()
            self._owners.append(first.owner)
            first.given = True
            first.over.set()
        else:
            self._free += 1

    def _make_room(self) -> None:
        idle = [(seconds, i) for i, o in enumerate(self._owners) if (seconds := o.may_sleep()) is not None]
        if idle:
            self._owners[max(idle)[1]].sleep_now()
