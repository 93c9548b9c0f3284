"""Where the ingress sends work that is no comment's; workertasks.py is the worker's."""

from typing import Protocol

from sessiond_webhook.deliveries.intents import TaskWanted


class TaskPort(Protocol):
    """Where tasks go. Both raise redis.RedisError (or anything) when it is not done: then the delivery comes again."""

    def add_task(self, wanted: TaskWanted) -> str:
        """Makes the task durable before it returns; its id. The same `wanted.key` again is the same task."""
        ...

    def wake(self, session: str, number: int) -> int:
        """Wakes the tasks that wait for this pull request, without preempting anybody; how many. Safe to repeat."""
        ...
