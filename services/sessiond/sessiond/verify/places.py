"""The tickets of a ledger. An entry costs at most the logarithm of their number.

Two heaps give the lowest place that blocks the places behind it, and the lowest lapsed place. A place that no longer
counts is removed when it reaches the top. So each change of a place costs at most one push and one pop.
"""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Final

HANDLER: Final = "handler"
WORKER: Final = "worker"
_serials: Final = count()


@dataclass(slots=True, eq=False)
class Place:
    """One ticket, queued or (while it has the lease) out of the queue."""

    ticket: str
    kind: str
    score: int
    present: bool = False
    passed: bool = False
    lapsed: bool = False
    holder: str | None = None
    gone: set[str] = field(default_factory=set)
    """Superseded holders."""
    losses: int | None = 0
    """Leases in a row that expired or were not confirmed. None: unknown."""
    queued: bool = True
    serial: int = field(default_factory=lambda: next(_serials))

    def __post_init__(self) -> None:
        if self.kind not in (HANDLER, WORKER):
            raise ValueError(f"unknown kind of ticket: {self.kind!r}")

    @property
    def fifo(self) -> str:
        """The invariant about the order of this kind."""
        return f"{self.kind}_fifo"

    @property
    def bars(self) -> bool:
        """Whether no ticket behind it may be granted."""
        return self.queued and (self.present or not (self.passed or self.lapsed))


class _Lowest:
    """Finds the lowest score among the places for which `counts` is true."""

    def __init__(self, counts: Callable[[Place], bool]) -> None:
        self._counts = counts
        self._heap: list[tuple[int, int, Place]] = []
        self._listed: set[int] = set()

    def update(self, place: Place) -> None:
        """Record that the place has changed."""
        if place.serial not in self._listed and self._counts(place):
            self._listed.add(place.serial)
            heapq.heappush(self._heap, (place.score, place.serial, place))

    def first(self) -> Place | None:
        """Return the lowest place, or None."""
        while self._heap and not self._counts(self._heap[0][2]):
            self._listed.discard(heapq.heappop(self._heap)[1])
        return self._heap[0][2] if self._heap else None


class Places:
    """All places of a session. Change a place's marks and its `queued` only through this class."""

    def __init__(self, places: Iterable[Place] = ()) -> None:
        self.queue: dict[str, Place] = {}
        self.out: dict[str, Place] = {}
        """Places that have the lease. At a step's end there are no others here."""
        self.handlers = 0
        """The number of handlers' tickets in the queue that have not lapsed."""
        self._present = {HANDLER: 0, WORKER: 0}
        self._bars = _Lowest(lambda place: place.bars)
        self._lapsed = _Lowest(lambda place: place.queued and place.lapsed)
        for place in places:
            self._all_of(place)[place.ticket] = place
            self._enter(place)

    def _all_of(self, place: Place) -> dict[str, Place]:
        return self.queue if place.queued else self.out

    def find(self, ticket: str) -> Place | None:
        """Return the place of a ticket, in the queue or out of it."""
        return self.queue.get(ticket) or self.out.get(ticket)

    def all(self) -> Iterable[Place]:
        """Return every place."""
        return chain(self.queue.values(), self.out.values())

    # ---- changes -----------------------------------------------------------------------------

    def add(self, place: Place) -> None:
        """Add a new place."""
        self._all_of(place)[place.ticket] = place
        self._enter(place)

    def remove(self, ticket: str) -> Place | None:
        """Remove a place and return it, or None if there is none."""
        place = self.queue.pop(ticket, None) or self.out.pop(ticket, None)
        if place is not None:
            self._leave(place)
            place.queued = False
        return place

    def move(self, place: Place, *, queued: bool) -> None:
        """Move a place out of the queue (a grant) or back into it."""
        self.remove(place.ticket)
        place.queued = queued
        self.add(place)

    def mark(
        self, place: Place, *, present: bool | None = None, passed: bool | None = None, lapsed: bool | None = None
    ) -> None:
        """Change marks. None leaves a mark as it is."""
        self._leave(place)
        place.present = place.present if present is None else present
        place.passed = place.passed if passed is None else passed
        place.lapsed = place.lapsed if lapsed is None else lapsed
        self._enter(place)

    def forget_presence(self) -> None:
        """Clear presence and passed-over marks of all places."""
        for place in self.all():
            if place.present or place.passed:
                self.mark(place, present=False, passed=False)

    def _leave(self, place: Place) -> None:
        if place.queued:
            self.handlers -= place.kind == HANDLER and not place.lapsed
            self._present[place.kind] -= place.present

    def _enter(self, place: Place) -> None:
        if place.queued:
            self.handlers += place.kind == HANDLER and not place.lapsed
            self._present[place.kind] += place.present
            self._bars.update(place)
            self._lapsed.update(place)

    # ---- queries -----------------------------------------------------------------------------

    def head(self) -> Place | None:
        """Return the lowest place in the queue that is present, or neither passed over nor lapsed."""
        return self._bars.first()

    def lapsed_before(self, score: int) -> bool:
        """Return whether a lapsed ticket is queued below this score."""
        first = self._lapsed.first()
        return first is not None and first.score < score

    def any_lapsed(self) -> bool:
        """Return whether a lapsed ticket is queued."""
        return self._lapsed.first() is not None

    def could_have(self, place: Place) -> bool:
        """Return whether a free lock could be granted to this place, if those ahead are ignored."""
        return place.present and (place.kind == HANDLER or self.handlers == 0)

    def anybody_could_have(self) -> bool:
        """Return whether a free lock could be granted to any present ticket, if those ahead are ignored."""
        return self._present[HANDLER] > 0 or (self._present[WORKER] > 0 and self.handlers == 0)
