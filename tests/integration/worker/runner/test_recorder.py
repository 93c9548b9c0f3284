"""The recorder of a run on a real Redis: it changes the task only under its run lease, and waits for Redis."""

import threading

import pytest
import redis

from sessiond_common.jobs.queue import connect
from sessiond_worker.runner.recorder import TaskRecorder
from sessiond_worker.tasks import events as ev
from sessiond_worker.tasks.machine import TaskRefused
from sessiond_worker.tasks.model import NewTask, TaskBudget, TaskState
from sessiond_worker.tasks.run_lease import RunLease
from sessiond_worker.tasks.store import NoTask, RunLeaseLost, Tasks, run_lease_key
from support.servers import Redis

START = ev.Start(TaskBudget(20, 120.0))


@pytest.fixture
def tasks(redis_server: Redis) -> Tasks:
    return Tasks(connect(redis_server.url))


def recorder_of(tasks: Tasks, task_id: str) -> TaskRecorder:
    return TaskRecorder(tasks, RunLease(tasks.connection, task_id, "run-1", 60.0))


def test_the_recorder_changes_the_loaded_task(tasks: Tasks) -> None:
    task = tasks.add(NewTask("k", "octo/hello", "A title", "Do it."))
    recorder = recorder_of(tasks, task.id)
    assert recorder.load() == task
    recorder.change(START)
    assert recorder.task.state is TaskState.RUNNING and tasks.get(task.id) == recorder.task
    assert tasks.connection.get(run_lease_key(task.id)) == b"run-1", "acquired again after it expired"
    recorder.change(ev.Interrupt("a test"), wake=True)
    assert recorder.task.job != task.job
    with pytest.raises(TaskRefused):
        recorder.change(ev.Done("never ran"))
    with pytest.raises(NoTask):
        recorder_of(tasks, "task-none-1").load()


def test_the_task_of_another_run_is_not_changed(tasks: Tasks) -> None:
    task = tasks.add(NewTask("k", "octo/hello", "A title", "Do it."))
    recorder = recorder_of(tasks, task.id)
    recorder.load()
    tasks.connection.set(run_lease_key(task.id), "run-2")
    with pytest.raises(RunLeaseLost):
        recorder.change(START)
    assert tasks.get(task.id) == task


def test_the_recorder_waits_for_redis(tasks: Tasks, redis_server: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    task = tasks.add(NewTask("k", "octo/hello", "A title", "Do it."))
    recorder = recorder_of(tasks, task.id)
    recorder.load()
    failed, change = threading.Event(), Tasks.change

    def seen(self: Tasks, *words: object, **more: object) -> object:
        try:
            return change(self, *words, **more)  # type: ignore[arg-type]
        except (redis.ConnectionError, redis.TimeoutError):
            failed.set()
            raise

    monkeypatch.setattr(Tasks, "change", seen)
    redis_server.kill9()
    thread = threading.Thread(target=recorder.change, args=(START,))
    thread.start()
    assert failed.wait(20)
    redis_server.start()
    thread.join(20)
    assert not thread.is_alive() and tasks.get(task.id).runs == 1
