"""The sweep: wakes a worker for every task that nobody would look at otherwise. One at a time among all workers."""

import secrets
from typing import Any, Final

import redis

from sessiond_worker.tasks.store import Tasks

LOCK: Final = "worker:sweep"
LOCK_SECONDS: Final = 20.0
"""Longer than a sweep takes; its holder's death costs no more than that."""


def sweep(tasks: Tasks, every: float) -> tuple[str, ...]:
    """The ids of the tasks that were woken; none when another process sweeps. Raises redis.RedisError."""
    token = secrets.token_hex(8)
    if not tasks.connection.set(LOCK, token, nx=True, px=int(max(LOCK_SECONDS, every) * 1000)):
        return ()
    try:
        return tasks.revive()
    finally:
        _unlock(tasks.connection, token)


def _unlock(connection: Any, token: str) -> None:
    with connection.pipeline() as pipe:
        try:
            pipe.watch(LOCK)
            if pipe.get(LOCK) == token.encode():
                pipe.multi()
                pipe.delete(LOCK)
                pipe.execute()
        except redis.WatchError:
            return
