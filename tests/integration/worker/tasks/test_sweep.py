"""The sweep: one at a time, and only for tasks that have neither a run nor a job."""

import time
from collections.abc import Callable

import pytest
import redis

from sessiond_common.jobs.queue import connect
from sessiond_worker.tasks.model import NewTask
from sessiond_worker.tasks.store import Tasks
from sessiond_worker.tasks.sweep import LOCK, LOCK_SECONDS, sweep
from support.servers import Redis
from support.worker.worker_scene import Scene, line


def test_one_sweep_at_a_time_and_only_tasks_without_run_and_job(scene: Callable[..., Scene]) -> None:
    s = scene()
    s.worker.terminate()
    task = s.add(line("done"))
    assert s.tasks.revive() == (), "its job is still in the queue"
    s.connection.delete(f"rq:job:{task.job}", "rq:queue:tasks")
    s.connection.set(f"worker:claim:{task.id}", "somebody", px=60_000)
    assert s.tasks.revive() == (), "a run holds the lease of the task"
    s.connection.delete(f"worker:claim:{task.id}")
    s.connection.set(LOCK, "another worker", px=60_000)
    assert sweep(s.tasks, 1) == (), "another sweep holds the lock"
    s.connection.delete(LOCK)
    assert sweep(s.tasks, 1) == (task.id,) and not s.connection.exists(LOCK)
    assert s.tasks.revive() == ()
    s.connection.delete(f"rq:job:{s.tasks.get(task.id).job}", "rq:queue:tasks")
    s.worker.start()
    begun = time.monotonic()
    assert s.wait_for_end(task).state == "done"
    print(f"all of rq's keys deleted: done after {time.monotonic() - begun:.1f} s")


def test_a_sweep_that_outlasts_its_lock_does_not_release_the_next_lock(
    redis_server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = Tasks(connect(redis_server.url))

    def revive(self: Tasks) -> tuple[str, ...]:
        left = tasks.connection.pttl(LOCK)
        assert 0 < left <= LOCK_SECONDS * 1000
        tasks.connection.set(LOCK, "the next sweep")
        return ()

    monkeypatch.setattr(Tasks, "revive", revive)
    assert sweep(tasks, 1) == ()
    assert tasks.connection.get(LOCK) == b"the next sweep"


def test_a_sweep_that_fails_releases_its_lock(redis_server: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = Tasks(connect(redis_server.url))
    task = tasks.add(NewTask("k", "octo/hello", "A title", "Do it."))
    tasks.connection.delete(f"rq:job:{task.job}", "rq:queue:tasks")
    with monkeypatch.context() as patched:
        patched.setattr(Tasks, "get", lambda self, task_id: (_ for _ in ()).throw(redis.ResponseError("broken")))
        with pytest.raises(redis.ResponseError):
            sweep(tasks, 1)
    assert sweep(tasks, 1) == (task.id,)
