"""Where callers wait for the owner loop: parked waits, and the stream of a turn.

Nothing here decides. A parked wait is answered once, by the loop; a stream never blocks the loop: a
slow reader loses `agent` events (it is told how many) and never the `result`.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

import gevent
from gevent.event import AsyncResult, Event

BEAT_SECONDS: Final = 10.0
STREAM_LIMIT: Final = 2_000
"""`agent` events that wait for a slow reader; the oldest of more are dropped."""
STREAM_BYTES: Final = 8 * 2**20
"""The same in bytes of the agent's lines; of whatever size, the newest one is kept."""


class Parked:
    """One wait on a ticket, from its arrival to its one answer."""

    def __init__(self, ticket: str, holder: str, leave: Callable[["Parked", bool], None]) -> None:
        self.ticket = ticket
        self.holder = holder
        self._leave = leave
        self._reply: AsyncResult[dict[str, Any]] = AsyncResult()

    def answer(self, seconds: float) -> dict[str, Any]:
        """The body of the wait's answer, after at most about `seconds`. Raises Problem."""
        try:
            return self._told(seconds)
        except gevent.Timeout:
            # The loop may grant in this very moment: it answers, one way or the other.
            self._leave(self, False)
            return self._told(None)

    def _told(self, seconds: float | None) -> dict[str, Any]:
        body = self._reply.get(timeout=seconds)
        return {} if body is None else body

    def hang_up(self) -> None:
        """The caller is gone. Never blocks; may be called from the hub, and twice."""
        if not self._reply.ready():
            self._leave(self, True)

    @property
    def open(self) -> bool:
        return not self._reply.ready()

    def tell(self, body: dict[str, Any]) -> None:
        """Answers, once; a second answer is dropped."""
        if self.open:
            self._reply.set(body)

    def refuse(self, problem: Exception) -> None:
        """Answers with an error, once."""
        if self.open:
            self._reply.set_exception(problem)


class Desk:
    """Who is parked, at most one a ticket. Used by the owner loop only."""

    def __init__(self) -> None:
        self._parked: dict[str, Parked] = {}

    def has(self, ticket: str) -> bool:
        """Whether somebody is parked on the ticket."""
        return ticket in self._parked

    def sit(self, parked: Parked) -> Parked | None:
        """Takes the seat; returns who sat there and is to be answered."""
        before = self._parked.get(parked.ticket)
        self._parked[parked.ticket] = parked
        return before

    def stand_up(self, parked: Parked) -> bool:
        """Leaves the seat; False if it is another's by now."""
        if self._parked.get(parked.ticket) is not parked:
            return False
        del self._parked[parked.ticket]
        return True

    def tell(self, ticket: str, body: dict[str, Any]) -> None:
        """Answers whoever is parked on the ticket."""
        if parked := self._parked.pop(ticket, None):
            parked.tell(body)

    def refuse(self, ticket: str, problem: Exception) -> None:
        """Answers whoever is parked on the ticket with an error."""
        if parked := self._parked.pop(ticket, None):
            parked.refuse(problem)

    def refuse_all(self, problem: Exception) -> None:
        """Answers everybody with an error."""
        for parked in self._parked.values():
            parked.refuse(problem)
        self._parked.clear()


StreamItem = tuple[str, Any]


class TurnStream:
    """A turn's events for its holder: ("agent", line), ("gap", {"lost": n}), ("beat", None), ("result", {...})."""

    def __init__(self, turn: str) -> None:
        self.turn = turn
        self._lines: deque[tuple[dict[str, Any], int]] = deque()
        self._bytes = 0
        self._lost = 0
        self._result: dict[str, Any] | None = None
        self._filled = Event()
        self._closed = self._cut = False

    def feed(self, line: dict[str, Any] | None, size: int) -> None:
        """One of the agent's own lines, of `size` bytes; None for one that cannot be told. Never blocks."""
        if self._closed:
            return
        if line is None:
            self._lost += 1
            self._filled.set()
            return
        while self._lines and (len(self._lines) >= STREAM_LIMIT or self._bytes + size > STREAM_BYTES):
            self._next()
            self._lost += 1
        self._lines.append((line, size))
        self._bytes += size
        self._filled.set()

    def _next(self) -> dict[str, Any]:
        line, size = self._lines.popleft()
        self._bytes -= size
        return line

    def finish(self, result: dict[str, Any]) -> None:
        """The turn's one result."""
        self._result = result
        self._filled.set()

    def cut(self) -> None:
        """Ends without a result: who reads it must ask what became of the turn."""
        self._cut = True
        self._filled.set()

    def close(self) -> None:
        """The reader went away; the turn goes on."""
        self._closed = True
        self._lines.clear()
        self._bytes = 0

    def __iter__(self) -> Iterator[StreamItem]:
        while True:
            if not self._filled.wait(BEAT_SECONDS):
                yield ("beat", None)
                continue
            self._filled.clear()
            # A yield may last as long as the reader is slow: what was lost meanwhile is told before the result.
            while self._lines or self._lost:
                if self._lost:
                    lost, self._lost = self._lost, 0
                    yield ("gap", {"lost": lost})
                else:
                    yield ("agent", self._next())
            if self._result is not None:
                yield ("result", self._result)
                return
            if self._cut:
                return
