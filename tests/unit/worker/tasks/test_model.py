"""The record of a task: the next turn, budgets, and its JSON."""

import json
from dataclasses import fields, replace

import pytest

from sessiond_worker.tasks.model import Task, TaskBudget, TaskTurn, TaskUsage, dumps, loads, next_turn, used_up
from support.worker.task_records import TURN, make_task


@pytest.mark.parametrize(
    ("last", "missing", "key", "nudge"),
    [
        (None, False, "task-x-1:1:1", False),
        (replace(TURN), False, "task-x-1:1:1", False),
        (replace(TURN, open=False, outcome="completed"), False, "task-x-1:2:1", False),
        (replace(TURN, open=False, outcome="completed"), True, "task-x-1:2:1", True),
        (replace(TURN, open=False, outcome="cancelled"), False, "task-x-1:1:2", False),
        (replace(TURN, open=False, outcome="lost", nudge=True), True, "task-x-1:1:2", True),
        (replace(TURN, open=False, outcome="failed", nudge=True), False, "task-x-1:2:1", False),
    ],
)
def test_the_next_turn_has_the_next_number_or_attempt(
    last: TaskTurn | None, missing: bool, key: str, nudge: bool
) -> None:
    turn = next_turn(make_task(turn=last, missing=missing))
    assert (turn.key, turn.nudge) == (key, nudge)


def test_a_used_up_budget_is_reported() -> None:
    task = make_task(budget=TaskBudget(2, 1.0, 0.5))
    assert used_up(task) is None
    assert "2 turns" in str(used_up(replace(task, used=TaskUsage(turns=2))))
    assert "1 minutes" in str(used_up(replace(task, used=TaskUsage(seconds=60))))
    assert "0.5 US" in str(used_up(replace(task, used=TaskUsage(usd=0.5))))
    assert used_up(make_task(budget=TaskBudget(2, 1.0), used=TaskUsage(usd=1e6))) is None
    assert TaskBudget(turns=3).filled(TaskBudget(20, 5.0, 1.0)) == TaskBudget(3, 5.0, 1.0)


def test_a_record_is_read_back_unchanged() -> None:
    task = make_task(turn=TURN, notices=("a", "b"), ticket="tk-1", used=TaskUsage(1, 2.0, 0.3))
    assert loads(dumps(task)) == task
    newer = {**json.loads(dumps(task)), "not_known_yet": 1}
    assert loads(json.dumps(newer)) == task
    assert all(f.name in json.loads(dumps(task)) for f in fields(Task))
