"""Records of tasks for unit tests."""

from typing import Any

from sessiond_worker.tasks.model import Task, TaskBudget, TaskSource, TaskState, TaskTurn

AT = "2030-01-02T03:04:05.000Z"
TURN = TaskTurn(1, 1, "task-x-1:1:1")


def make_task(state: TaskState = TaskState.RUNNING, **more: Any) -> Task:
    given = {
        "id": "task-x-1", "key": "k", "session": "octo/hello", "title": "T", "instructions": "Do it.",
        "source": TaskSource("issue", 7, "https://x/7"), "asked_by": "ann", "budget": TaskBudget(20, 120.0),
        "created_at": AT, "updated_at": AT, "state": state, **more,
    }  # fmt: skip
    return Task(**given)
