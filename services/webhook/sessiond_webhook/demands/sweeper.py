"""The sweeper: every `interval` seconds it repairs the effects of crashes. One replica sweeps at a time.

It reads the records of the demands, never rq. It takes missing tickets and withdraws tickets that nobody needs. It
enqueues a job for an unanswered demand without a live run or job, and for a note that no poster will post. It ends
demands that are too old. It runs in the webhook's processes, because they run as long as deliveries are accepted.
"""

import contextlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import structlog
from redis.exceptions import LockNotOwnedError
from redis.lock import Lock

from sessiond_common.clock import now_text, seconds_since
from sessiond_webhook.demands import machine
from sessiond_webhook.demands.machine import Demand, DemandState
from sessiond_webhook.demands.runs import RunLeases
from sessiond_webhook.demands.store import SESSIONS, Demands, open_key
from sessiond_webhook.demands.tickets import Tickets

log = structlog.get_logger("webhook.sweeper")

LOCK: Final = "webhook:sweeper"
DONE: Final = "webhook:swept"
LOCK_TTL: Final = 120
"""Seconds after which the lock of a killed sweeper ends."""
MAX_AGE: Final = 86_400.0
"""Seconds after which an unanswered demand is too old."""


@dataclass(frozen=True, slots=True)
class SweepCounts:
    """How many repairs of each kind one sweep did."""

    tickets: int = 0
    woken: int = 0
    too_old: int = 0
    withdrawn: int = 0
    posts: int = 0

    def __bool__(self) -> bool:
        return any((self.tickets, self.woken, self.too_old, self.withdrawn, self.posts))


class Sweeper:
    """One replica's sweeper. `wake_posters` wakes posters and returns for how many threads."""

    def __init__(
        self,
        demands: Demands,
        runs: RunLeases,
        tickets: Tickets,
        wake_posters: Callable[[], int],
        interval: float = 30.0,
    ) -> None:
        self._demands, self._runs, self._tickets = demands, runs, tickets
        self._wake_posters, self._interval = wake_posters, interval

    def sweep(self) -> SweepCounts | None:
        """Sweep. Returns None if another replica sweeps now, or has swept within the interval.

        Raises:
            redis.RedisError: Redis is away.
        """
        redis, token = self._demands.redis, secrets.token_hex(8)
        lock = Lock(redis, LOCK, timeout=LOCK_TTL)
        if not lock.acquire(blocking=False, token=token):
            return None
        try:
            # A little less than the interval, so that replicas with equal intervals take turns.
            if not redis.set(DONE, token, nx=True, px=max(1, int(self._interval * 900))):
                return None
            counts = self._sweep_all()
        finally:
            with contextlib.suppress(LockNotOwnedError):  # the sweep took longer than LOCK_TTL
                lock.release()
        if counts:
            log.info(
                "swept", **{name: getattr(counts, name) for name in SweepCounts.__slots__ if getattr(counts, name)}
            )
        return counts

    def _sweep_all(self) -> SweepCounts:
        counts = SweepCounts(withdrawn=self._withdraw_tickets(), posts=self._wake_posters())
        for session in self._demands.sessions():
            unanswered = self._demands.unanswered(session)
            if not unanswered:
                self._forget(session)
            counts = self._sweep_session(session, unanswered, counts)
        return counts

    def _forget(self, session: str) -> None:
        """Stop listing a session that has no unanswered demand."""

        def work(pipe: Any) -> None:
            left = pipe.zcard(open_key(session))
            pipe.multi()
            if not left:
                pipe.srem(SESSIONS, session)

        self._demands.transact(work, open_key(session))

    def _sweep_session(self, session: str, unanswered: list[Demand], counts: SweepCounts) -> SweepCounts:
        live = self._runs.live(session)
        free_runs = self._runs.limit - len(live)
        for demand in unanswered:
            if self._end_if_too_old(demand, live):
                counts = replace(counts, too_old=counts.too_old + 1)
                continue
            if demand.ticket is None and self._tickets.take(demand) is not None:
                counts = replace(counts, tickets=counts.tickets + 1)
            has_run = demand.state is DemandState.ANSWERING and demand.holder in live
            if not has_run and free_runs > 0:
                free_runs -= 1
                if not self._demands.jobs.live(demand.job) and self._demands.wake(demand.key) is not None:
                    counts = replace(counts, woken=counts.woken + 1)
        return counts

    def _end_if_too_old(self, demand: Demand, live: set[str]) -> bool:
        if seconds_since(demand.at[DemandState.OPEN.value]) < MAX_AGE or demand.holder in live:
            return False
        move = partial(machine.failed, reason="too-old", now=now_text())
        try:
            ended = self._demands.change(demand.key, move, self._demands.stage_post)
        except (machine.MoveRefused, KeyError):
            return False
        self._tickets.withdraw(ended)
        return True

    def _withdraw_tickets(self) -> int:
        return sum(self._tickets.withdraw(demand) for demand in self._demands.withdrawals())
