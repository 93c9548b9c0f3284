"""The tickets of demands in sessiond's queue. A failed call does no harm: the demand is durable; the sweeper retries.

The ingress calls it with a short deadline, so that a comment preempts the worker at once. The sweeper and the handler
use it too.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Final, TypeVar

import redis
import structlog

from sessiond.client import Client, ProblemError, SessiondError, TicketEnded, Unavailable
from sessiond_webhook.demands.machine import ENDED, UNANSWERED, Demand
from sessiond_webhook.demands.store import WITHDRAWALS, Demands

log = structlog.get_logger("webhook.tickets")

FAILURES: Final = 2
"""Failures in a row after which the circuit breaker opens."""
PAUSE: Final = 5.0
"""Seconds for which it stays open."""
_T = TypeVar("_T")


class DeadlineExceeded(Exception):
    """sessiond did not answer within the deadline. The outcome of the call is unknown."""


class CircuitBreaker:
    """Stops calls to a service for `pause` seconds after `failures` calls in a row without an answer.

    After the pause, one call may test the service.
    """

    def __init__(
        self, failures: int = FAILURES, pause: float = PAUSE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._threshold, self._pause, self._clock = failures, pause, clock
        self._failures = 0
        self._open_until = 0.0

    def allows(self) -> bool:
        """Whether a call may be made now. While the breaker is open, it allows one call after each pause."""
        if self._failures < self._threshold:
            return True
        now = self._clock()
        if now < self._open_until:
            return False
        self._open_until = now + self._pause
        return True

    def record_success(self) -> None:
        """Record that the service answered."""
        self._failures = 0

    def record_failure(self) -> None:
        """Record that the service did not answer."""
        self._failures += 1
        self._open_until = self._clock() + self._pause


class Tickets:
    """Takes and withdraws tickets. `time_limit` raises DeadlineExceeded inside its block when a call takes too long."""

    def __init__(
        self,
        demands: Demands,
        client: Client,
        *,
        time_limit: Callable[[], AbstractContextManager[Any]] = nullcontext,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        self._demands, self._client, self._time_limit = demands, client, time_limit
        self.breaker = breaker or CircuitBreaker()

    def take(self, demand: Demand) -> Demand | None:
        """Take a ticket and record it with its place. Returns the new record.

        Returns None if there is no ticket yet, or if the demand does not need one any more. A repeated call gives the
        same ticket, because the ticket has the demand's key.
        """
        ticket = self._call("take", demand, lambda: self._client.take(demand.session, kind="handler", key=demand.key))
        if ticket is None:
            return None

        def note(pipe: Any, after: Demand) -> None:
            if after.state in ENDED:
                pipe.sadd(WITHDRAWALS, after.key)

        try:
            after = self._demands.change(demand.key, lambda known: _with_ticket(known, ticket), note)
        except (redis.RedisError, KeyError) as error:
            log.warning(
                "cannot record a ticket that was taken; the sweeper takes it again",
                demand=demand.key,
                error=repr(error),
            )
            return None
        if after.state in UNANSWERED:
            return after
        # The demand ended before its ticket was taken, so no run will use this ticket.
        self.withdraw(after)
        return None

    def withdraw(self, demand: Demand) -> bool:
        """Withdraw the demand's ticket and record it. Returns False if this may have failed; the sweeper retries."""
        ticket = demand.ticket
        if ticket is not None:
            done = self._call("withdraw", demand, lambda: self._withdraw_at_sessiond(demand.session, ticket))
            if done is None:
                return False
        try:
            self._demands.withdrawn(demand.key)
        except redis.RedisError as error:
            log.warning("cannot record a withdrawal; the sweeper tries again", demand=demand.key, error=repr(error))
            return False
        return True

    def _withdraw_at_sessiond(self, session: str, ticket: str) -> bool:
        try:
            self._client.withdraw(session, ticket)
        except TicketEnded:
            return True
        except ProblemError as problem:
            if problem.type != "not-found":
                raise
        return True

    def _call(self, what: str, demand: Demand, call: Callable[[], _T]) -> _T | None:
        if not self.breaker.allows():
            return None
        try:
            with self._time_limit():
                found = call()
        except (Unavailable, DeadlineExceeded) as error:
            self.breaker.record_failure()
            log.warning(
                "sessiond does not answer; the sweeper tries again", asked=what, demand=demand.key, error=str(error)
            )
            return None
        except SessiondError as error:
            self.breaker.record_success()
            log.warning("sessiond refused a call", asked=what, demand=demand.key, error=str(error))
            return None
        self.breaker.record_success()
        return found


def _with_ticket(known: Demand, ticket: dict[str, Any]) -> Demand:
    if known.ticket == ticket["id"]:
        return known
    return replace(known, ticket=ticket["id"], place=ticket.get("position"))
