"""The record of the task that a run works on: the last known state, and changes under the run lease."""

import time
import uuid
from typing import Final

import redis

from sessiond_common.jobs.worker import stopping
from sessiond_worker.tasks import events as ev
from sessiond_worker.tasks.model import Task
from sessiond_worker.tasks.run_lease import RunLease
from sessiond_worker.tasks.store import RunLeaseLost, Tasks

REDIS_PATIENCE: Final = 60.0
"""A change is retried for this many seconds while Redis is away; then the run ends."""
RETRY_SECONDS: Final = 0.2


class TaskRecorder:
    """Reads and changes one task under one run lease."""

    def __init__(self, tasks: Tasks, run_lease: RunLease) -> None:
        self._tasks, self._run_lease = tasks, run_lease
        self.task: Task
        """The task as this run last read or changed it. Call `load` first."""

    def load(self) -> Task:
        """Read the task. Raises NoTask."""
        self.task = self._tasks.get(self._run_lease.task_id)
        return self.task

    def change(self, *events: ev.Event, wake: bool = False) -> None:
        """Apply events as one change; `wake` also makes a job for the task. Waits while Redis is away.

        Raises:
            RunLeaseLost: another run has the task.
            TaskRefused: the task's state does not accept an event.
            redis.ConnectionError, redis.TimeoutError: Redis is away for too long, or the worker stops during the wait.
        """
        lease, change, ends = self._run_lease, uuid.uuid4().hex, time.monotonic() + REDIS_PATIENCE
        while True:
            try:
                self.task = self._tasks.change(lease.task_id, *events, run=lease.token, wake=wake, change=change)
                return
            except RunLeaseLost:
                # If it only expired while Redis was away, it can be acquired again.
                if not lease.acquire():
                    raise
            except (redis.ConnectionError, redis.TimeoutError):
                if time.monotonic() > ends or stopping().is_set():
                    raise
                time.sleep(RETRY_SECONDS)
