"""The ingress's door to the worker's task store (worker.tasks is the one part of the worker that webhook knows)."""

from typing import Final

from sessiond_webhook.deliveries.intents import TaskWanted
from sessiond_worker.tasks.model import NewTask, TaskSource
from sessiond_worker.tasks.store import TEXT_LIMIT, TITLE_LIMIT, Tasks

EMPTY: Final = "(The issue has no text.)"
WHY: Final = "a person wrote or decided something in its thread, which is answered in this conversation"


class WorkerTasks:
    """A sessiond_webhook.ingress.task_port.TaskPort."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks

    def add_task(self, wanted: TaskWanted) -> str:
        """Makes the task durable before it returns; its id. The same `wanted.key` is the same task while it lives."""
        title = wanted.title.replace("\x00", "").strip()[:TITLE_LIMIT] or f"Issue {wanted.number}"
        text = wanted.body.replace("\x00", "").strip()[:TEXT_LIMIT] or EMPTY
        source = TaskSource(kind="issue", number=wanted.number, url=wanted.url or None)
        new = NewTask(f"issue:{wanted.key}", wanted.session, title, text, source, wanted.asked_by.login)
        return self._tasks.add(new).id

    def wake(self, session: str, number: int) -> int:
        """Tasks of this issue or pull request that are stuck are queued again; how many."""
        return len(self._tasks.wake(session, number, WHY))
