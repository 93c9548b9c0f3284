"""A demand's place in sessiond's queue, best effort: the demand is durable without it, and the sweep comes by.

Used by the ingress (short deadline, so that a worker is preempted at arrival) and by the sweeper.
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
PAUSE: Final = 5.0
_T = TypeVar("_T")


class TookTooLong(Exception):
    """sessiond did not answer within the deadline; whether it did what was asked is not known."""


class Breaker:
    """Stops asking a service that does not answer: after `failures` in a row for `pause` seconds, then one may try."""

    def __init__(
        self, failures: int = FAILURES, pause: float = PAUSE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most, self._pause, self._clock = failures, pause, clock
        self._failures = 0
        self._shut_until = 0.0

    def lets(self) -> bool:
        """Whether to ask now. While it is shut, the first to come after each pause tries for all."""
        if self._failures < self._most:
            return True
        now = self._clock()
        if now < self._shut_until:
            return False
        self._shut_until = now + self._pause
        return True

    def answered(self) -> None:
        """It answers."""
        self._failures = 0

    def failed(self) -> None:
        """It does not."""
        self._failures += 1
        self._shut_until = self._clock() + self._pause


class Tickets:
    """Takes and withdraws tickets. `bound` limits one call's time by raising TookTooLong inside the block."""

    def __init__(
        self,
        demands: Demands,
        client: Client,
        *,
        bound: Callable[[], AbstractContextManager[Any]] = nullcontext,
        breaker: Breaker | None = None,
    ) -> None:
        self._demands, self._client, self._bound = demands, client, bound
        self._breaker = breaker or Breaker()

    def take(self, demand: Demand) -> Demand | None:
        """The demand with its ticket and place, both recorded. None: there is none yet, or it was not needed any more.

        Safe to repeat: the demand's key gives the same ticket.
        """
        ticket = self._ask("take", demand, lambda: self._client.take(demand.session, kind="handler", key=demand.key))
        if ticket is None:
            return None

        def note(pipe: Any, after: Demand) -> None:
            if after.state in ENDED:
                pipe.sadd(WITHDRAWALS, after.key)

        try:
            after = self._demands.change(demand.key, lambda known: _with(known, ticket), note)
        except (redis.RedisError, KeyError) as error:
            log.warning("a ticket was taken and not recorded", demand=demand.key, error=repr(error))
            return None
        if after.state in UNANSWERED:
            return after
        # Withdrawn, closed or answered between its commit and its ticket: a ticket that nobody will take up.
        self.withdraw(after)
        return None

    def withdraw(self, demand: Demand) -> bool:
        """The demand's ticket is no more, which is recorded. False: that is not sure, and the sweep asks again."""
        ticket = demand.ticket
        if ticket is not None:
            done = self._ask("withdraw", demand, lambda: self._withdrawn(demand.session, ticket))
            if done is None:
                return False
        try:
            self._demands.withdrawn(demand.key)
        except redis.RedisError as error:
            log.warning("a withdrawal was not recorded", demand=demand.key, error=repr(error))
            return False
        return True

    def _withdrawn(self, session: str, ticket: str) -> bool:
        try:
            self._client.withdraw(session, ticket)
        except TicketEnded:
            return True
        except ProblemError as problem:
            if problem.type != "not-found":
                raise
        return True

    def _ask(self, what: str, demand: Demand, call: Callable[[], _T]) -> _T | None:
        if not self._breaker.lets():
            return None
        try:
            with self._bound():
                found = call()
        except (Unavailable, TookTooLong) as error:
            self._breaker.failed()
            log.warning("sessiond does not answer", asked=what, demand=demand.key, error=str(error))
            return None
        except SessiondError as error:
            self._breaker.answered()
            log.warning("sessiond refused", asked=what, demand=demand.key, error=str(error))
            return None
        self._breaker.answered()
        return found


def _with(known: Demand, ticket: dict[str, Any]) -> Demand:
    if known.ticket == ticket["id"]:
        return known
    return replace(known, ticket=ticket["id"], place=ticket.get("position"))
