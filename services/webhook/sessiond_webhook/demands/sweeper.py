"""The sweep: every `interval` seconds, one at a time over all replicas, it puts right what a death left behind.

What is swept is read from the demands' records, never from rq: an unanswered demand without a ticket gets one, one
that nobody answers and no live job will wake for gets a job, one that is too old gets its reason; withdrawn tickets
that could not be withdrawn are; notes that no poster will come for are posted. The webhook processes run it, because
they are there as long as anything is accepted.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import structlog

from sessiond_common.clock import now_text, seconds_since
from sessiond_webhook.demands import machine as d
from sessiond_webhook.demands.machine import Demand, State
from sessiond_webhook.demands.runs import Runs
from sessiond_webhook.demands.store import SESSIONS, Demands, open_key

log = structlog.get_logger("webhook.sweeper")

LOCK: Final = "webhook:sweeper"
DONE: Final = "webhook:swept"
LONGEST: Final = 120
"""Seconds after which a sweep that was killed no longer bars the next."""
MAX_AGE: Final = 86_400.0


class Tickets(Protocol):
    """Takes and withdraws tickets, best effort."""

    def take(self, demand: Demand) -> Demand | None: ...

    def withdraw(self, demand: Demand) -> bool: ...


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep did, counted."""

    tickets: int = 0
    woken: int = 0
    too_old: int = 0
    withdrawn: int = 0
    posts: int = 0

    def __bool__(self) -> bool:
        return any((self.tickets, self.woken, self.too_old, self.withdrawn, self.posts))


class Sweeper:
    """One replica's sweeper. `posts` wakes posters and says for how many threads."""

    def __init__(
        self, demands: Demands, runs: Runs, tickets: Tickets, posts: Callable[[], int], interval: float = 30.0
    ) -> None:
        self._demands, self._runs, self._tickets, self._posts, self._interval = demands, runs, tickets, posts, interval

    def sweep(self) -> Swept | None:
        """Sweeps unless another replica does, or did within the interval: then None. Raises redis.RedisError."""
        redis, who = self._demands.redis, secrets.token_hex(8)
        if not redis.set(LOCK, who, nx=True, ex=LONGEST):
            return None
        try:
            if not redis.set(DONE, who, nx=True, px=max(1, int(self._interval * 900))):
                return None
            swept = self._all()
        finally:
            if redis.get(LOCK) == who.encode():
                redis.delete(LOCK)
        if swept:
            log.info("swept", **{name: getattr(swept, name) for name in Swept.__slots__ if getattr(swept, name)})
        return swept

    def _all(self) -> Swept:
        counts = Swept(withdrawn=self._withdrawals(), posts=self._posts())
        for session in self._demands.sessions():
            found = self._demands.unanswered(session)
            if not found:
                self._forget(session)
            counts = self._session(session, found, counts)
        return counts

    def _forget(self, session: str) -> None:
        """A session without unanswered demands is none to look at; one that gets some just now is kept."""

        def work(pipe: Any) -> None:
            left = pipe.zcard(open_key(session))
            pipe.multi()
            if not left:
                pipe.srem(SESSIONS, session)

        self._demands.transact(work, open_key(session))

    def _session(self, session: str, found: list[Demand], counts: Swept) -> Swept:
        live = self._runs.live(session)
        may_wake = self._runs.limit - len(live)
        for one in found:
            if self._too_old(one, live):
                counts = replace(counts, too_old=counts.too_old + 1)
                continue
            if one.ticket is None and self._tickets.take(one) is not None:
                counts = replace(counts, tickets=counts.tickets + 1)
            nobody = not (one.state is State.ANSWERING and one.holder in live)
            if nobody and may_wake > 0:
                may_wake -= 1
                if not self._demands.jobs.live(one.job) and self._demands.wake(one.key) is not None:
                    counts = replace(counts, woken=counts.woken + 1)
        return counts

    def _too_old(self, demand: Demand, live: set[str]) -> bool:
        if seconds_since(demand.at[State.OPEN.value]) < MAX_AGE or demand.holder in live:
            return False
        try:
            move: Callable[[Demand], Demand] = lambda known: d.failed(known, "too-old", now_text())  # noqa: E731
            ended = self._demands.change(demand.key, move, self._demands.stage_post)
        except (d.NotNow, KeyError):
            return False
        self._tickets.withdraw(ended)
        return True

    def _withdrawals(self) -> int:
        return sum(self._tickets.withdraw(one) for one in self._demands.withdrawals())
