"""The port to the worker's tasks, and its implementation on the worker's task store.

`sessiond_worker.tasks` is the only part of the worker that the webhook imports.
"""

from typing import Final, Protocol

from sessiond_webhook.deliveries.intents import TaskWanted
from sessiond_worker.tasks.model import NewTask, TaskSource
from sessiond_worker.tasks.store import TEXT_LIMIT, TITLE_LIMIT, Tasks

EMPTY: Final = "(The issue has no text.)"
WHY: Final = "a person wrote or decided something in its thread, which is answered in this conversation"


class TaskPort(Protocol):
    """Where the ingress sends tasks. If a call raises, nothing is certain, and GitHub must send the delivery again."""

    def add_task(self, wanted: TaskWanted) -> str:
        """Store the task and return its id. It is durable when this returns. The same `wanted.key` is the same task."""
        ...

    def wake(self, session: str, number: int) -> int:
        """Wake the tasks that wait for this issue or pull request, without preemption. Returns how many.

        Safe to repeat.
        """
        ...


class WorkerTasks:
    """A `TaskPort` on the worker's task store."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks

    def add_task(self, wanted: TaskWanted) -> str:
        """Store the task and return its id. The same `wanted.key` is the same task until that task has ended."""
        title = wanted.title.replace("\x00", "").strip()[:TITLE_LIMIT] or f"Issue {wanted.number}"
        text = wanted.body.replace("\x00", "").strip()[:TEXT_LIMIT] or EMPTY
        source = TaskSource(kind="issue", number=wanted.number, url=wanted.url or None)
        new = NewTask(f"issue:{wanted.key}", wanted.session, title, text, source, wanted.asked_by.login)
        return self._tasks.add(new).id

    def wake(self, session: str, number: int) -> int:
        """Queue the stuck tasks of this issue or pull request again. Returns how many."""
        return len(self._tasks.wake(session, number, WHY))
