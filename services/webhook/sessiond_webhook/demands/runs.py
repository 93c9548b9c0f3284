"""The run leases of handlers: which runs are alive, and which demand each may answer.

A job only wakes a run. The run takes the first demand of its session that no live run answers. The demand that the job
names does not matter. A session has at most `limit` runs, so that many comments on one session do not delay other
sessions. A run renews its lease every third of `ttl`. When the lease has ended, another run may acquire the demand.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import redis
import structlog

from sessiond_common.clock import now_text
from sessiond_common.heartbeat import Heartbeat
from sessiond_webhook.demands import codec, machine
from sessiond_webhook.demands.machine import Demand, DemandState
from sessiond_webhook.demands.store import SESSIONS, Demands, demand_key, open_key, text

log = structlog.get_logger("webhook.runs")
MAX_LOOKUPS: Final = 64
"""Unanswered demands among which a run looks for one without a live run."""


def runs_key(session: str) -> str:
    return f"webhook:runs:{session}"


@dataclass(frozen=True, slots=True)
class RunLeases:
    """The run leases of every session. Times in seconds."""

    demands: Demands
    limit: int = 2
    ttl: float = 15.0

    def acquire(self, session: str, holder: str) -> Demand | None:
        """Start the lease of this run and return its demand. Returns None if no demand or no run is free."""

        def work(pipe: Any) -> Demand | None:
            now = self._now()
            live = self._live(pipe, session, now)
            found = None if len(live - {holder}) >= self.limit else self._free(pipe, session, live - {holder})
            pipe.multi()
            pipe.zremrangebyscore(runs_key(session), "-inf", now)
            if found is None:
                return None
            pipe.zadd(runs_key(session), {holder: now + self.ttl})
            after = machine.acquired(found, holder, now_text())
            pipe.set(demand_key(after.key), codec.dump(after))
            return after

        return self.demands.transact(work, runs_key(session), open_key(session))

    def _free(self, pipe: Any, session: str, live: set[str]) -> Demand | None:
        for key in pipe.zrange(open_key(session), 0, MAX_LOOKUPS - 1):
            name = demand_key(text(key))
            pipe.watch(name)
            data = pipe.get(name)
            if data is None:
                continue
            found = codec.load(data)
            if found.state is DemandState.OPEN or (found.state is DemandState.ANSWERING and found.holder not in live):
                return found
        return None

    def renew(self, session: str, holder: str) -> bool:
        """Renew the lease of this run. Returns False if it has already ended. An ended lease cannot be renewed."""
        pipe = self.demands.redis.pipeline()
        pipe.zadd(runs_key(session), {holder: self._now() + self.ttl}, xx=True)
        pipe.zscore(runs_key(session), holder)
        return pipe.execute()[1] is not None

    def release(self, session: str, holder: str) -> None:
        """End the lease, and wake a run for the next free demand in the same step."""

        def work(pipe: Any) -> None:
            live = self._live(pipe, session, self._now()) - {holder}
            next_demand = self._free(pipe, session, live) if len(live) < self.limit else None
            rest = pipe.zcard(open_key(session))
            pipe.multi()
            pipe.zrem(runs_key(session), holder)
            if next_demand is not None:
                woken = self.demands.stage_wake(pipe, next_demand)
                pipe.set(demand_key(woken.key), codec.dump(woken))
            elif not rest:
                pipe.srem(SESSIONS, session)

        self.demands.transact(work, runs_key(session), open_key(session))

    def live(self, session: str) -> set[str]:
        """Return the holders of the session's live runs."""
        return self._live(self.demands.redis, session, self._now())

    @staticmethod
    def _live(source: Any, session: str, now: float) -> set[str]:
        return {text(one) for one in source.zrangebyscore(runs_key(session), f"({now}", "+inf")}

    def _now(self) -> float:
        """Return the time of Redis's clock, because the runs are on many machines."""
        seconds, micros = self.demands.redis.time()
        return seconds + micros / 1e6

    @contextmanager
    def held(self, session: str, holder: str, on_dead: Callable[[], None] | None = None) -> Iterator[None]:
        """Renew the lease inside the `with` block, in a thread. `on_dead` is called if the lease has ended."""

        def beat() -> bool:
            if self.renew(session, holder):
                return True
            log.warning("the lease of this run has ended", session=session, holder=holder)
            if on_dead is not None:
                on_dead()
            return False

        def on_error(error: redis.RedisError) -> None:
            log.warning("cannot reach Redis to renew this run's lease; retrying", session=session, error=str(error))

        with Heartbeat(f"run-lease-{session}", self.ttl / 3, beat, on_error).running():
            yield
