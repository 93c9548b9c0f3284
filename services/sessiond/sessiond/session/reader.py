"""Read access to an owned session, for the queries of other greenlets. Nothing here changes anything."""

from typing import Any

from sessiond.agent.state import Agent
from sessiond.lock.rules import Kind
from sessiond.lock.state import Lock
from sessiond.session.callers.turn_record import TurnRecord
from sessiond.session.pipeline.runner import Pipeline


class SessionReader:
    """The state of one session as of its last committed step, and its past records in Redis."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline, self._context = pipeline, pipeline.context
        self.name = pipeline.context.name

    @property
    def lock(self) -> Lock:
        """The lock, an immutable value."""
        return self._context.state.lock

    @property
    def agent(self) -> Agent:
        """The agent, an immutable value."""
        return self._context.state.agent

    @property
    def board_values(self) -> tuple[object, ...]:
        """The values of the state. A change replaces at least one of them with another object."""
        state = self._context.state
        return state.lock, state.agent, state.lease_extras

    @property
    def taken(self) -> dict[str, str]:
        """When each ticket that has not ended was taken, RFC 3339, by ticket id."""
        return self._context.state.taken

    @property
    def granted_at(self) -> str | None:
        """When the current lease was granted, RFC 3339."""
        extras = self._context.state.lease_extras
        return extras.granted_at or None if extras else None

    @property
    def expires_at(self) -> str | None:
        """When the current lease ends if its holder does not renew it, RFC 3339."""
        return self._context.lease_time.expires_at()

    @property
    def guard(self) -> dict[str, Any]:
        """The record of the current guard: `pid`, `agent_pid`, …; empty without a guard."""
        return self._context.link.guard or {}

    @property
    def epoch(self) -> int:
        """The epoch in which this instance owns the session."""
        return self._pipeline.commits.epoch

    @property
    def version(self) -> int:
        """How many steps were committed in all epochs."""
        return self._pipeline.commits.version

    @property
    def owner(self) -> dict[str, str]:
        """The owner as callers see it: `{instance, url}`."""
        return {"instance": self._context.settings.instance, "url": self._context.settings.url}

    def oldest_waits(self) -> dict[Kind, float]:
        """Return by kind the seconds of the longest wait that goes on."""
        return self._pipeline.metrics.oldest_waits(self.lock)

    def require_ticket(self, ticket: str) -> None:
        """Check that a ticket has not ended.

        Raises:
            Problem: `ticket-ended`, `not-found`, `redis-away`.
        """
        self._context.ticket_waits.require(ticket)

    def turn(self, turn: str) -> TurnRecord | None:
        """Return a turn's record. Raises Problem `redis-away`."""
        return self._context.turns.find(turn)

    def turn_by_key(self, key: str) -> TurnRecord | None:
        """Return the record of the last attempt under this key. Raises Problem `redis-away`."""
        return self._context.turns.find_key(key)

    def ledger_after(self, after: str | None, count: int) -> list[dict[str, Any]]:
        """Return at most `count` entries after the id `after` (None: from the first). Raises RedisUnavailable."""
        return self._context.store.ledger(after, count)

    def wait_ledger(self, after: str | None, seconds: float) -> list[dict[str, Any]]:
        """The same, but wait at most `seconds` for the first entry. Raises store.RedisUnavailable."""
        return self._context.store.ledger_wait(after, int(seconds * 1000))

    def ledger_before(self, before: str | None, count: int) -> list[dict[str, Any]]:
        """Return at most `count` entries before the id `before` (None: from the last), newest first.

        Raises store.RedisUnavailable.
        """
        return self._context.store.ledger_before(before, count)
