"""A run's claim on its task: a token in Redis with a ttl, so that a task never runs twice at once.

One thread a run renews it and listens to the task's bell (a cancel rings it). It lives in the work-horse, so the
claim stands also when rq's parent was killed and the orphan goes on, and falls when the work-horse is.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, Final

import redis
import structlog

from sessiond_worker.tasks.store import bell_key, claim_key

log = structlog.get_logger("worker.claim")

LONGEST_LISTEN: Final = 2.0
"""Below the connection's own deadline."""


class Claim:
    """Held until `release`, or until it could not be renewed for its ttl and somebody else took it.

    `rung` is called when the bell rang, `lost` once when the claim is somebody else's; both from the claim's thread.
    """

    def __init__(self, connection: "redis.Redis", task_id: str, token: str, ttl: float) -> None:
        self._redis: Any = connection
        self.task_id = task_id
        self.token = token
        self._ms = int(ttl * 1000)
        self._beat = min(LONGEST_LISTEN, ttl / 3)
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> bool:
        """Whether the task is ours now. Raises redis.ConnectionError, redis.TimeoutError."""
        return bool(self._redis.set(claim_key(self.task_id), self.token, nx=True, px=self._ms)) or self._ours()

    def _ours(self) -> bool:
        found = self._redis.get(claim_key(self.task_id))
        return found is not None and found.decode() == self.token

    def watch(self, rung: Callable[[], None], lost: Callable[[], None]) -> None:
        """Begins to renew and to listen."""
        self._thread = threading.Thread(target=self._watch, args=(rung, lost), name="claim", daemon=True)
        self._thread.start()

    def _watch(self, rung: Callable[[], None], lost: Callable[[], None]) -> None:
        while not self._done.is_set():
            try:
                heard = self._redis.blpop([bell_key(self.task_id)], timeout=self._beat)
                if not self._renew():
                    log.warning("the claim is lost", task=self.task_id)
                    lost()
                    return
                if heard is not None and not self._done.is_set():
                    rung()
            except (redis.ConnectionError, redis.TimeoutError) as error:
                log.warning("Redis is away, the claim stands unrenewed", task=self.task_id, error=str(error))
                time.sleep(min(0.2, self._beat))

    def _renew(self) -> bool:
        """Another full ttl; also for a claim that ran out while nobody took it."""
        with self._redis.pipeline() as pipe:
            try:
                pipe.watch(claim_key(self.task_id))
                found = pipe.get(claim_key(self.task_id))
                if found is not None and found.decode() != self.token:
                    return False
                pipe.multi()
                pipe.set(claim_key(self.task_id), self.token, px=self._ms)
                pipe.execute()
            except redis.WatchError:
                return self._ours()
        return True

    def release(self) -> None:
        """Gives it back, if it is ours still. Raises redis.ConnectionError, redis.TimeoutError."""
        self._done.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(LONGEST_LISTEN + 1)
        with self._redis.pipeline() as pipe:
            try:
                pipe.watch(claim_key(self.task_id))
                found = pipe.get(claim_key(self.task_id))
                if found is not None and found.decode() == self.token:
                    pipe.multi()
                    pipe.delete(claim_key(self.task_id))
                    pipe.execute()
            except redis.WatchError:
                return
