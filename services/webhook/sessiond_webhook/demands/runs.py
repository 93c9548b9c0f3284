"""Which handler runs are alive, and which demand each may take up.

A run takes the first demand of its session that nobody answers, not the one its job names: jobs are only wakes.
At most `limit` runs a session, so that a flurry on one session starves no other. A run says every `beat` seconds
that it lives; one that has not for `ttl` counts as dead, and another may take its demand up.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import redis
import structlog

from sessiond_common.clock import now_text
from sessiond_common.heartbeat import Heartbeat
from sessiond_webhook.demands import codec
from sessiond_webhook.demands import machine as d
from sessiond_webhook.demands.machine import Demand, State
from sessiond_webhook.demands.store import SESSIONS, Demands, demand_key, open_key, text

log = structlog.get_logger("webhook.runs")
LOOK_AT: Final = 64
"""Unanswered demands that are looked at for one that is free."""


def runs_key(session: str) -> str:
    return f"webhook:runs:{session}"


@dataclass(frozen=True, slots=True)
class Runs:
    """The runs of every session. Times in seconds."""

    demands: Demands
    limit: int = 2
    ttl: float = 15.0

    def claim(self, session: str, holder: str) -> Demand | None:
        """The demand that this run takes up; None when there is none, or the session has its runs."""

        def work(pipe: Any) -> Demand | None:
            now = self._now()
            live = self._live(pipe, session, now)
            found = None if len(live - {holder}) >= self.limit else self._free(pipe, session, live - {holder})
            pipe.multi()
            pipe.zremrangebyscore(runs_key(session), "-inf", now)
            if found is None:
                return None
            pipe.zadd(runs_key(session), {holder: now + self.ttl})
            after = d.claimed(found, holder, now_text())
            pipe.set(demand_key(after.key), codec.dump(after))
            return after

        return self.demands.transact(work, runs_key(session), open_key(session))

    def _free(self, pipe: Any, session: str, live: set[str]) -> Demand | None:
        for key in pipe.zrange(open_key(session), 0, LOOK_AT - 1):
            name = demand_key(text(key))
            pipe.watch(name)
            data = pipe.get(name)
            if data is None:
                continue
            found = codec.load(data)
            if found.state is State.OPEN or (found.state is State.ANSWERING and found.holder not in live):
                return found
        return None

    def beat(self, session: str, holder: str) -> bool:
        """The run lives. False when it already counts as dead; it does not rise again by itself."""
        pipe = self.demands.redis.pipeline()
        pipe.zadd(runs_key(session), {holder: self._now() + self.ttl}, xx=True)
        pipe.zscore(runs_key(session), holder)
        return pipe.execute()[1] is not None

    def finish(self, session: str, holder: str) -> None:
        """The run is over; whoever it kept waiting is woken, in the same step."""

        def work(pipe: Any) -> None:
            live = self._live(pipe, session, self._now()) - {holder}
            waiting = self._free(pipe, session, live) if len(live) < self.limit else None
            rest = pipe.zcard(open_key(session))
            pipe.multi()
            pipe.zrem(runs_key(session), holder)
            if waiting is not None:
                woken = self.demands.stage_wake(pipe, waiting)
                pipe.set(demand_key(woken.key), codec.dump(woken))
            elif not rest:
                pipe.srem(SESSIONS, session)

        self.demands.transact(work, runs_key(session), open_key(session))

    def live(self, session: str) -> set[str]:
        """The holders of the session's live runs."""
        return self._live(self.demands.redis, session, self._now())

    @staticmethod
    def _live(source: Any, session: str, now: float) -> set[str]:
        return {text(one) for one in source.zrangebyscore(runs_key(session), f"({now}", "+inf")}

    def _now(self) -> float:
        """Redis's own clock: the runs are on many machines."""
        seconds, micros = self.demands.redis.time()
        return seconds + micros / 1e6

    @contextmanager
    def beating(self, session: str, holder: str, on_dead: Callable[[], None] | None = None) -> Iterator[None]:
        """While inside, a thread says that the run lives, every third of `ttl`."""

        def beat() -> bool:
            if self.beat(session, holder):
                return True
            log.warning("this run counts as dead", session=session, holder=holder)
            if on_dead is not None:
                on_dead()
            return False

        def away(error: redis.RedisError) -> None:
            log.warning("no beat: Redis is away", session=session, error=str(error))

        with Heartbeat(f"beat-{session}", self.ttl / 3, beat, away).running():
            yield
