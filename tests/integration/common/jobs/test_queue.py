"""The behaviour of rq that the design relies on: how it stores jobs, how long they live, and what a crash leaves.

All tests except the first few run real parents and work-horses.
"""

import json
import time
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
import redis
from rq import Queue
from rq.registry import FailedJobRegistry, ScheduledJobRegistry, StartedJobRegistry

from support.jobs.job_scene import QUEUE, JobScene, Parent
from support.servers import eventually


def test_a_job_is_json_and_other_arguments_are_refused(scene: JobScene) -> None:
    job_id = scene.enqueue("greet", "ü")
    data = json.loads(zlib.decompress(scene.redis.hget(f"rq:job:{job_id}", "data")))
    assert data[0] == "sample_jobs.greet" and data[2] == [str(scene.record), "ü"]
    with pytest.raises(TypeError):
        scene.enqueue("greet", object())


def test_ids_are_random_because_rq_runs_a_repeated_id_twice(scene: JobScene) -> None:
    assert scene.enqueue("greet", 1) != scene.enqueue("greet", 1)
    queue = Queue("other", connection=scene.redis, serializer="json")
    for word in ("first", "second"):
        queue.enqueue_call("sample_jobs.greet", args=(word,), job_id="same")
    assert queue.get_job_ids() == ["same", "same"]
    assert scene.job("same").args == ["second"]


def test_a_job_is_enqueued_only_when_its_transaction_succeeds(scene: JobScene) -> None:
    pipe = scene.redis.pipeline()
    pipe.watch("record")
    pipe.multi()
    pipe.set("record", "mine")
    staged = scene.enqueue("greet", 1, pipeline=pipe)
    assert not scene.jobs.live(staged)
    scene.redis.set("record", "another's")
    with pytest.raises(redis.WatchError):
        pipe.execute()
    assert not scene.jobs.live(staged) and scene.redis.llen(f"rq:queue:{QUEUE}") == 0
    pipe = scene.redis.pipeline()
    pipe.multi()
    pipe.set("record", "mine")
    staged = scene.enqueue("greet", 1, pipeline=pipe)
    pipe.execute()
    assert scene.jobs.live(staged) and scene.jobs.waiting(staged)


def test_a_finished_job_is_deleted(scene: JobScene, parent: Callable[..., Parent]) -> None:
    job_id = scene.enqueue("greet", "x")
    assert scene.jobs.live(job_id) and scene.jobs.waiting(job_id)
    parent()
    scene.reported("greet x")
    eventually(lambda: not scene.redis.exists(f"rq:job:{job_id}"), 5, "result_ttl 0")
    assert not scene.jobs.live(job_id) and not scene.jobs.live(None) and not scene.jobs.live("never-made")


def test_a_job_has_no_time_limit_although_rq_sets_one_by_default(
    scene: JobScene, parent: Callable[..., Parent]
) -> None:
    job_id = scene.waiting_job()
    assert scene.job(job_id).timeout == -1
    limited = scene.jobs.queue(QUEUE).enqueue_call("sample_jobs.wait", args=(str(scene.record), "never"), timeout=1)
    assert Queue("plain", connection=scene.redis).enqueue("sample_jobs.greet").timeout == 180
    parent()
    scene.reported("begin")
    time.sleep(1.2)  # longer than the limit of the other job, because no event shows that nothing happens
    assert scene.job(job_id).get_status() == "started"
    scene.go.touch()
    scene.reported("end")
    eventually(lambda: limited.get_status() == "failed", 10)


def test_a_job_that_raises_is_failed_and_the_next_one_runs(scene: JobScene, parent: Callable[..., Parent]) -> None:
    job_id = scene.enqueue("fail")
    scene.enqueue("greet", "after")
    parent()
    scene.reported("greet after")
    assert scene.job(job_id).get_status() == "failed" and not scene.jobs.live(job_id)
    assert job_id in FailedJobRegistry(QUEUE, connection=scene.redis, serializer="json")


def test_the_job_of_a_killed_work_horse_fails_and_is_not_repeated(
    scene: JobScene, parent: Callable[..., Parent]
) -> None:
    """The parent of a killed work-horse marks its job as failed at once, and takes the next job."""
    job_id = scene.waiting_job()
    one = parent()
    scene.reported("begin")
    assert scene.jobs.live(job_id) and not scene.jobs.waiting(job_id)
    one.horse().kill()
    eventually(lambda: scene.job(job_id).get_status() == "failed", 5)
    assert not scene.jobs.live(job_id)
    scene.enqueue("greet", "after")
    scene.reported("greet after")
    assert len(scene.reported("begin")) == 1


def test_a_work_horse_continues_without_a_heartbeat_when_its_parent_is_killed(
    scene: JobScene, parent: Callable[..., Parent]
) -> None:
    """Nothing in rq shows any more that the job runs. Only the job's own lease can show it."""
    job_id = scene.waiting_job()
    one = parent()
    scene.reported("begin")
    horse = one.horse()
    one.process.kill()
    one.process.wait()
    assert horse.is_running() and scene.jobs.live(job_id)
    scene.age(job_id)
    assert not scene.jobs.live(job_id), "its last heartbeat is too old"
    assert scene.job(job_id).get_status() == "started"
    scene.go.touch()
    scene.reported("end")
    eventually(lambda: not scene.redis.exists(f"rq:job:{job_id}"), 5, "the orphan itself finishes the job")


def test_a_job_whose_processes_are_killed_is_never_repeated(scene: JobScene, parent: Callable[..., Parent]) -> None:
    """Parent and work-horse are killed. rq keeps `started` until a cleanup a minute later, and does not repeat it."""
    job_id = scene.waiting_job()
    one = parent()
    scene.reported("begin")
    horse = one.horse()
    one.process.kill()
    horse.kill()
    one.process.wait()
    registry = StartedJobRegistry(QUEUE, connection=scene.redis, serializer="json")
    registry.cleanup(time.time() + 30)
    assert scene.job(job_id).get_status() == "started"
    scene.age(job_id)
    assert not scene.jobs.live(job_id), "known long before that"
    registry.cleanup(time.time() + 90)
    assert scene.job(job_id).get_status() == "failed"
    assert not scene.jobs.live(job_id) and scene.redis.llen(f"rq:queue:{QUEUE}") == 0


def test_a_job_of_a_parent_that_is_killed_before_the_start_is_lost(scene: JobScene) -> None:
    """A parent is killed just after it took the job off the list. The job stays `queued`, but no worker reads it."""
    job_id = scene.waiting_job()
    scene.redis.lmove(f"rq:queue:{QUEUE}", f"rq:queue:{QUEUE}:intermediate")
    assert scene.job(job_id).get_status() == "queued"
    assert scene.jobs.live(job_id) and not scene.jobs.waiting(job_id), "it may begin in this moment"
    scene.age(job_id)
    assert not scene.jobs.live(job_id)


def test_a_job_whose_keys_were_deleted_does_not_run(scene: JobScene, parent: Callable[..., Parent]) -> None:
    job_id = scene.waiting_job()
    scene.redis.delete(f"rq:job:{job_id}")
    assert not scene.jobs.live(job_id)
    parent()
    scene.enqueue("greet", "after")
    scene.reported("greet after")


def test_a_delayed_job_needs_a_scheduler(scene: JobScene, parent: Callable[..., Parent]) -> None:
    job_id = scene.enqueue("greet", "later", at=datetime.now(UTC) + timedelta(seconds=0.5))
    assert job_id in ScheduledJobRegistry(QUEUE, connection=scene.redis, serializer="json")
    assert scene.jobs.live(job_id) and scene.jobs.waiting(job_id)
    without = parent()
    scene.enqueue("greet", "now")
    scene.reported("greet now")
    time.sleep(1)  # past its time; no event shows that nothing happens
    assert scene.job(job_id).get_status() == "scheduled"
    assert without.terminate() == 0
    parent("s")
    scene.reported("greet later", 15)


def test_a_pipeline_must_begin_its_transaction_first(scene: JobScene) -> None:
    pipe = scene.redis.pipeline()
    pipe.set("record", "mine")
    with pytest.raises(redis.RedisError, match="without an initial WATCH"):
        scene.enqueue("greet", 1, pipeline=pipe)
