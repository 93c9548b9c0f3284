"""The run lease of a task: a token in Redis with a time to live, so that a task never runs twice at once.

A thread in the work-horse renews it and waits on the task's bell, a list to which a cancel adds an entry. So the lease
is renewed if only rq's parent is killed, and it expires if the work-horse is killed.
"""

from collections.abc import Callable
from typing import Any, Final

import redis
import structlog

from sessiond_common.heartbeat import Heartbeat
from sessiond_worker.tasks.store import bell_key, run_lease_key

log = structlog.get_logger("worker.claim")

MAX_LISTEN_SECONDS: Final = 2.0
"""The longest wait on the bell. It must be shorter than the deadline of the connection's calls."""
RETRY_SECONDS: Final = 0.2


class RunLease:
    """One run's lease on its task, held from `acquire` to `release`.

    It is lost when it could not be renewed for `ttl` seconds and another run acquired it.
    """

    def __init__(self, connection: "redis.Redis", task_id: str, token: str, ttl: float) -> None:
        self._redis: Any = connection
        self.task_id, self.token, self._ttl_ms = task_id, token, int(ttl * 1000)
        self._key = run_lease_key(task_id)
        self._listen_seconds = min(MAX_LISTEN_SECONDS, ttl / 3)
        self._heartbeat: Heartbeat | None = None

    def acquire(self) -> bool:
        """Acquire the lease unless another run holds it. Returns whether this run holds it now.

        Raises:
            redis.ConnectionError, redis.TimeoutError: Redis is away.
        """
        return bool(self._redis.set(self._key, self.token, nx=True, px=self._ttl_ms)) or self._held()

    def keep(self, on_bell: Callable[[], None], on_lost: Callable[[], None]) -> None:
        """Renew the lease and wait on the bell, in a thread, until `release`.

        The thread calls `on_bell` for each entry of the bell, and `on_lost` once when another run holds the lease.
        """

        def beat() -> bool:
            rung = self._redis.blpop([bell_key(self.task_id)], timeout=self._listen_seconds) is not None
            if not self._renew():
                log.warning("the run lease is lost to another run", task=self.task_id)
                on_lost()
                return False
            if rung and not heartbeat.stopped:
                on_bell()
            return True

        def on_error(error: Exception) -> None:
            log.warning("cannot reach Redis to renew the run lease; retrying", task=self.task_id, error=str(error))

        # Each beat waits in BLPOP, so no pause between two beats is needed.
        heartbeat = Heartbeat("run-lease", 0.0, beat, on_error, retry=min(RETRY_SECONDS, self._listen_seconds))
        self._heartbeat = heartbeat
        heartbeat.start()

    def release(self) -> None:
        """Release the lease if this run holds it.

        Raises:
            redis.ConnectionError, redis.TimeoutError: Redis is away.
        """
        if self._heartbeat is not None:
            self._heartbeat.stop(MAX_LISTEN_SECONDS + 1)
        with self._redis.pipeline() as pipe:
            try:
                pipe.watch(self._key)
                if pipe.get(self._key) == self.token.encode():
                    pipe.multi()
                    pipe.delete(self._key)
                    pipe.execute()
            except redis.WatchError:
                return

    def _held(self) -> bool:
        return bool(self._redis.get(self._key) == self.token.encode())

    def _renew(self) -> bool:
        """Restart the lease's time to live, even if it has expired and no other run has acquired it."""
        with self._redis.pipeline() as pipe:
            try:
                pipe.watch(self._key)
                if pipe.get(self._key) not in (None, self.token.encode()):
                    return False
                pipe.multi()
                pipe.set(self._key, self.token, px=self._ttl_ms)
                pipe.execute()
            except redis.WatchError:
                return self._held()
        return True
