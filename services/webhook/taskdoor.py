"""The ingress's door to the task store of the worker; the real one is an adapter that whoever composes injects."""

from typing import Protocol

import structlog

from webhook.events import TaskWanted

log = structlog.get_logger("webhook.tasks")


class TaskDoor(Protocol):
    """Where tasks go. Both raise redis.RedisError (or anything) when it is not done: then the delivery comes again."""

    def add_task(self, wanted: TaskWanted) -> str:
        """Makes the task durable before it returns; its id. The same `wanted.key` again is the same task."""
        ...

    def wake(self, session: str, number: int) -> int:
        """Wakes the tasks that wait for this pull request, without preempting anybody; how many. Safe to repeat."""
        ...


class NoTasks:
    """Nobody takes tasks here: says so in the log."""

    def add_task(self, wanted: TaskWanted) -> str:
        log.warning("no worker is configured: the task is dropped", session=wanted.session, number=wanted.number)
        return ""

    def wake(self, session: str, number: int) -> int:
        log.info("no worker is configured: nobody to wake", session=session, number=number)
        return 0
