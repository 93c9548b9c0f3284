"""The queries of a session for HTTP. They change nothing.

Views show the state as of the last committed step. All methods raise problems.Problem.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn

import gevent

from sessiond.agent.state import Phase
from sessiond.problems import away, no_ticket, no_turn
from sessiond.session import views
from sessiond.session.callers.turn_record import TurnRecord
from sessiond.session.reader import SessionReader
from sessiond.session.state import conversation_of
from sessiond.store.connection import RedisUnavailable

POLL_SECONDS: Final = 0.5
"""Seconds between two checks of an unused session for its first ticket."""


class SessionQueries:
    """The queries of an owned session."""

    def __init__(self, reader: SessionReader) -> None:
        self._reader = reader
        self.name = reader.name

    def view(self) -> dict[str, Any]:
        """Return the holder, the queue in order with reasons, and the agent's state."""
        reader, lock, agent = self._reader, self._reader.lock, self._reader.agent
        return {
            "session": self.name,
            "epoch": reader.epoch,
            "version": reader.version,
            "owner": reader.owner,
            "holder": views.holder_view(lock, reader.expires_at),
            "draining": lock.drain and {"fence": lock.drain.fence, "why": lock.drain.why.value},
            "queue": self._queue(),
            "turn": lock.turn,
            "agent": {
                "state": agent.phase.value, "why": agent.why or None, "tasks": sorted(agent.tasks),
                "pid": reader.guard.get("agent_pid"), "conversation": conversation_of(agent),
            },
        }  # fmt: skip

    def _queue(self) -> list[dict[str, Any]]:
        queued, taken = views.Queued(self._reader.lock), self._reader.taken
        return [queued.view(ticket, taken.get(ticket.id, "")) for ticket in queued.tickets]

    def ticket(self, ticket: str) -> dict[str, Any]:
        """Return one ticket."""
        self._reader.require_ticket(ticket)
        return views.ticket_view(self._reader.lock, ticket, self._reader.taken)

    def turn(self, turn: str) -> dict[str, Any]:
        """Return the record of a turn."""
        return _turn_view(self._reader.turn(turn))

    def turn_by_key(self, key: str) -> dict[str, Any]:
        """Return the record of the last attempt under this key."""
        return _turn_view(self._reader.turn_by_key(key))

    def ledger_after(self, after: str | None, count: int) -> list[dict[str, Any]]:
        """Return at most `count` entries after the id `after` (None: from the first)."""
        with _redis_away():
            return self._reader.ledger_after(after, count)

    def wait_ledger(self, after: str | None, seconds: float) -> list[dict[str, Any]]:
        """The same, but wait at most `seconds` for the first entry."""
        with _redis_away():
            return self._reader.wait_ledger(after, seconds)

    def ledger_before(self, before: str | None, count: int) -> list[dict[str, Any]]:
        """Return at most `count` entries before the id `before` (None: from the last), newest first."""
        with _redis_away():
            return self._reader.ledger_before(before, count)

    # ---- the board ---------------------------------------------------------------------------

    def board_values(self) -> tuple[object, ...]:
        """Return the values that the board shows. A change replaces at least one of them with another object."""
        return self._reader.board_values

    def keys(self) -> dict[str, str | None]:
        """Return the keys of the tickets that have not ended."""
        return {t.id: t.key for t in self._reader.lock.tickets.values()}

    def row(self) -> dict[str, Any]:
        """Return the session's line on the board."""
        reader = self._reader
        return views.board_row(self.name, reader.lock, reader.granted_at, reader.agent.phase.value)

    def detail(self) -> dict[str, Any]:
        """Return the holder and since when it holds, the queue with reasons, and the agent's state."""
        reader, agent = self._reader, self._reader.agent
        shown = {
            "state": agent.phase.value, "why": agent.why or None, "tasks": len(agent.tasks),
            "conversation": conversation_of(agent),
        }  # fmt: skip
        lock = views.board_lock(reader.lock, reader.granted_at, reader.taken)
        return {"session": self.name, **lock, "agent": shown}


class UnusedSession:
    """A session on which nobody has taken a ticket yet. A query does not create it."""

    def __init__(self, name: str, find: Callable[[], SessionQueries | None]) -> None:
        """`find` returns the session once it exists."""
        self.name = name
        self._find = find

    def view(self) -> dict[str, Any]:
        """Return an empty view: epoch and version 0, no owner, nobody waits."""
        agent: dict[str, Any] = {"state": Phase.ASLEEP.value, "why": None, "tasks": []}
        return {
            "session": self.name, "epoch": 0, "version": 0, "owner": None, "holder": None, "draining": None,
            "queue": [], "turn": None, "agent": {**agent, "pid": None, "conversation": None},
        }  # fmt: skip

    def ticket(self, ticket: str) -> NoReturn:
        """Raise `not-found`."""
        raise no_ticket()

    def turn(self, turn: str) -> NoReturn:
        """Raise `not-found`."""
        raise no_turn()

    def turn_by_key(self, key: str) -> NoReturn:
        """Raise `not-found`."""
        raise no_turn()

    def ledger_after(self, after: str | None, count: int) -> list[dict[str, Any]]:
        """Return no entries."""
        return []

    def wait_ledger(self, after: str | None, seconds: float) -> list[dict[str, Any]]:
        """Wait at most `seconds` for the first ticket and its first entry."""
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            if found := self._find():
                return found.wait_ledger(after, left)
            gevent.sleep(min(POLL_SECONDS, left))
        return []


@contextmanager
def _redis_away() -> Iterator[None]:
    try:
        yield
    except RedisUnavailable as error:
        raise away() from error


def _turn_view(found: TurnRecord | None) -> dict[str, Any]:
    if found is None:
        raise no_turn()
    return found.view()
