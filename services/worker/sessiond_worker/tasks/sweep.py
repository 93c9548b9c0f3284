"""The sweep: makes a job for every task that has work but neither a run nor a job. One worker sweeps at a time."""

import contextlib
from typing import Final

from redis.exceptions import LockNotOwnedError

from sessiond_worker.tasks.store import Tasks

LOCK: Final = "worker:sweep"
LOCK_SECONDS: Final = 20.0
"""Longer than a sweep takes. After a worker dies in a sweep, the next one waits at most this long."""


def sweep(tasks: Tasks, every: float) -> tuple[str, ...]:
    """Wake a worker for each such task. Returns the ids of these tasks, or no ids while another process sweeps.

    `every` is the time between two sweeps, in seconds.

    Raises:
        redis.RedisError: Redis is away.
    """
    lock = tasks.connection.lock(LOCK, timeout=max(LOCK_SECONDS, every), blocking=False)
    if not lock.acquire():
        return ()
    try:
        return tasks.revive()
    finally:
        with contextlib.suppress(LockNotOwnedError):  # the sweep took longer than the lock's time to live
            lock.release()
