"""The store of tasks on a real Redis: one task for each key, one transaction for record and job, and races."""

import threading
from dataclasses import replace

import pytest
import redis

from sessiond_common.jobs.queue import TASKS, Jobs, connect
from sessiond_worker.tasks import events as ev
from sessiond_worker.tasks.machine import TaskRefused
from sessiond_worker.tasks.model import NewTask, TaskBudget, TaskSource, TaskState
from sessiond_worker.tasks.store import NoTask, RunLeaseLost, Tasks, index_key, run_lease_key
from support.servers import Redis

NEW = NewTask("IC_1", "Octo/Hello", "A title", "Do it.", TaskSource("demand", 7, demand="IC_1"), "ann")


@pytest.fixture
def tasks(redis_server: Redis) -> Tasks:
    connection = connect(redis_server.url)
    return Tasks(connection, Jobs(connection))


def staged(tasks: Tasks, new: NewTask, between: object = None) -> str | None:
    """Add a task as webhook does: in one transaction with a record of its own."""
    with tasks.connection.pipeline() as pipe:
        if tasks.find_active(pipe, new.key) is not None:
            return None
        if callable(between):
            between()
        pipe.multi()
        pipe.set("webhook:demand", "answered")
        task_id = tasks.stage(pipe, new)
        pipe.execute()
        return task_id


def jobs_of(tasks: Tasks) -> int:
    return int(tasks.connection.llen(f"rq:queue:{TASKS}"))


def test_a_task_can_be_added_in_the_transaction_of_the_caller(tasks: Tasks) -> None:
    task_id = staged(tasks, NEW)
    assert task_id is not None
    found = tasks.get(task_id)
    assert (found.state, found.session, found.source) == (TaskState.QUEUED, "octo/hello", NEW.source)
    assert jobs_of(tasks) == 1 and tasks.connection.get("webhook:demand") == b"answered"
    assert staged(tasks, NEW) is None and tasks.add(NEW) == found


def test_the_loser_of_a_race_writes_nothing(tasks: Tasks) -> None:
    with pytest.raises(redis.WatchError):
        staged(tasks, NEW, lambda: tasks.add(NEW))
    assert jobs_of(tasks) == 1 and tasks.connection.get("webhook:demand") is None
    assert len(tasks.list()) == 1


def test_concurrent_adds_of_one_key_return_the_same_task(tasks: Tasks) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(tasks.add(NEW).id)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1 and jobs_of(tasks) == 1


def test_the_key_of_an_ended_task_can_be_used_again(tasks: Tasks) -> None:
    first = tasks.add(NEW)
    tasks.cancel(first.id)
    second = tasks.add(NEW)
    assert [i.rpartition("-")[2] for i in (first.id, second.id)] == ["1", "2"]
    assert first.id.rpartition("-")[0] == second.id.rpartition("-")[0]
    tasks.change(first.id, ev.Released())
    assert tasks.connection.get(index_key(NEW.key)) == second.id.encode(), (
        "a change of an old task must not change the index"
    )
    with pytest.raises(TaskRefused, match="newer task"):
        tasks.retry(first.id)


def test_a_change_with_the_same_name_is_made_once(tasks: Tasks) -> None:
    task = tasks.add(NEW)
    once = tasks.change(task.id, ev.Start(TaskBudget(1, 1.0)), change="c1")
    assert tasks.change(task.id, ev.Start(TaskBudget(1, 1.0)), change="c1") == once
    assert tasks.get(task.id).runs == 1


def test_only_the_run_that_holds_the_task_writes(tasks: Tasks) -> None:
    task = tasks.add(NEW)
    for holder in (None, "another run"):
        if holder is not None:
            tasks.connection.set(run_lease_key(task.id), holder, px=60_000)
        with pytest.raises(RunLeaseLost):
            tasks.change(task.id, ev.Start(TaskBudget(1, 1.0)), run="this run")
    tasks.connection.set(run_lease_key(task.id), "this run", px=60_000)
    assert tasks.change(task.id, ev.Start(TaskBudget(1, 1.0)), run="this run").state is TaskState.RUNNING


def test_a_refused_change_writes_nothing(tasks: Tasks) -> None:
    task = tasks.add(NEW)
    with pytest.raises(TaskRefused):
        tasks.change(task.id, ev.Cancel(), ev.Done("n"), wake=True)
    assert tasks.get(task.id) == task and jobs_of(tasks) == 1
    with pytest.raises(NoTask):
        tasks.cancel("task-none-1")


def test_only_stuck_tasks_are_woken(tasks: Tasks) -> None:
    stuck, running, other = (
        tasks.add(replace(NEW, key=k, session=s)) for k, s in (("a", "o/r"), ("b", "o/r"), ("c", "o/x"))
    )
    for task in (stuck, running, other):
        tasks.change(task.id, ev.Start(TaskBudget(1, 1.0)))
    for task in (stuck, other):
        tasks.change(task.id, ev.Stick("why"))
    before = jobs_of(tasks)
    assert [t.id for t in tasks.wake("O/R", 7)] == [stuck.id]
    assert jobs_of(tasks) == before + 1
    assert [t.id for t in tasks.list("O/r", TaskState.QUEUED)] == [stuck.id]


def test_no_change_is_half_written_while_redis_is_away(tasks: Tasks, redis_server: Redis) -> None:
    task = tasks.add(NEW)
    redis_server.kill9()
    for call in (lambda: tasks.add(replace(NEW, key="other")), lambda: tasks.cancel(task.id)):
        with pytest.raises((redis.ConnectionError, redis.TimeoutError)):
            call()
    redis_server.start()
    assert tasks.list() == [task] and jobs_of(tasks) == 1
