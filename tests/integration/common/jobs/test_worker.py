"""rq as it really is: one test for each thing that the design leans on, with real parents and real work-horses."""

import json
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from rq import Queue
from rq.job import Job
from rq.registry import FailedJobRegistry, ScheduledJobRegistry, StartedJobRegistry

from sessiond_common.jobs.queue import STALE_SECONDS, Jobs, connect
from support.servers import TESTS, Redis, eventually, kill_left

QUEUE = "chores"
CODE = (
    "import sys; from sessiond_common.jobs.worker import serve; "
    "sys.exit(serve(*sys.argv[1:3], scheduler=sys.argv[3:] == ['s']))"
)


class Parent:
    """rq's parent as this project runs it."""

    def __init__(self, url: str, place: Path, *words: str) -> None:
        env = {**os.environ, "PYTHONPATH": str(TESTS / "support" / "standins")}
        self.log = place / "parent.log"
        with self.log.open("ab") as log:
            command = [sys.executable, "-c", CODE, QUEUE, url, *words]
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        self._horses: list[psutil.Process] = []

    def horse(self) -> psutil.Process:
        found = eventually(lambda: psutil.Process(self.process.pid).children(), 10, self.log.read_text())[0]
        self._horses.append(found)
        return found

    def terminate(self) -> int:
        self.process.terminate()
        return self.process.wait(20)

    def close(self) -> None:
        if self.process.poll() is None:
            self._horses += psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            self.process.wait()
        kill_left(self._horses)


class Desk:
    """The queue, and the file in which jobs tell what they do."""

    def __init__(self, server: Redis, place: Path) -> None:
        self.server, self.place = server, place
        self.redis: Any = connect(server.url)
        self.jobs = Jobs(self.redis)
        self.told = place / "told"
        self.go = place / "go"

    def enqueue(self, name: str, *args: object, **more: Any) -> str:
        return self.jobs.enqueue(QUEUE, f"chores.{name}", str(self.told), *args, **more)

    def waiting_job(self) -> str:
        """A job that runs until `go` is there."""
        return self.enqueue("wait", str(self.go))

    def heard(self, word: str, seconds: float = 10) -> list[str]:
        def look() -> list[str]:
            lines = self.told.read_text().splitlines() if self.told.exists() else []
            return [text for text in lines if text.startswith(word)]

        return list(eventually(look, seconds, word))

    def job(self, job_id: str) -> Job:
        return Job.fetch(job_id, connection=self.redis, serializer="json")

    def age(self, job_id: str) -> None:
        """As if nobody had said for long that the job lives."""
        old = (datetime.now(UTC) - timedelta(seconds=STALE_SECONDS + 5)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        for name in ("last_heartbeat", "enqueued_at"):
            self.redis.hset(f"rq:job:{job_id}", name, old)


@pytest.fixture
def desk(redis_server: Redis, tmp_path: Path) -> Desk:
    return Desk(redis_server, tmp_path)


@pytest.fixture
def parent(redis_server: Redis, tmp_path: Path) -> Iterator[Callable[..., Parent]]:
    started: list[Parent] = []

    def start(*words: str) -> Parent:
        started.append(Parent(redis_server.url, tmp_path, *words))
        return started[-1]

    yield start
    for one in started:
        one.close()


# ---- what is stored ------------------------------------------------------------------------------


def test_a_job_is_json_and_what_is_not_json_is_refused(desk: Desk) -> None:
    job_id = desk.enqueue("greet", "ü")
    data = json.loads(zlib.decompress(desk.redis.hget(f"rq:job:{job_id}", "data")))
    assert data[0] == "chores.greet" and data[2] == [str(desk.told), "ü"]
    with pytest.raises(TypeError):
        desk.enqueue("greet", object())


def test_ids_are_random_because_rq_takes_a_repeated_one_twice(desk: Desk) -> None:
    assert desk.enqueue("greet", 1) != desk.enqueue("greet", 1)
    queue = Queue("other", connection=desk.redis, serializer="json")
    for word in ("first", "second"):
        queue.enqueue_call("chores.greet", args=(word,), job_id="same")
    assert queue.get_job_ids() == ["same", "same"]
    assert desk.job("same").args == ["second"]


def test_nothing_is_enqueued_before_the_multi_is_executed_nor_by_one_that_fails(desk: Desk) -> None:
    pipe = desk.redis.pipeline()
    pipe.watch("record")
    pipe.multi()
    pipe.set("record", "mine")
    staged = desk.enqueue("greet", 1, pipeline=pipe)
    assert not desk.jobs.live(staged)
    desk.redis.set("record", "another's")
    with pytest.raises(redis.WatchError):
        pipe.execute()
    assert not desk.jobs.live(staged) and desk.redis.llen(f"rq:queue:{QUEUE}") == 0
    pipe = desk.redis.pipeline()
    pipe.multi()
    pipe.set("record", "mine")
    staged = desk.enqueue("greet", 1, pipeline=pipe)
    pipe.execute()
    assert desk.jobs.live(staged) and desk.jobs.waiting(staged)


# ---- a job's life ----------------------------------------------------------------------------------


def test_a_finished_job_is_gone(desk: Desk, parent: Callable[..., Parent]) -> None:
    job_id = desk.enqueue("greet", "x")
    assert desk.jobs.live(job_id) and desk.jobs.waiting(job_id)
    parent()
    desk.heard("greet x")
    eventually(lambda: not desk.redis.exists(f"rq:job:{job_id}"), 5, "result_ttl 0")
    assert not desk.jobs.live(job_id) and not desk.jobs.live(None) and not desk.jobs.live("never-made")


def test_a_job_has_no_time_limit_where_rq_would_have_one(desk: Desk, parent: Callable[..., Parent]) -> None:
    job_id = desk.waiting_job()
    assert desk.job(job_id).timeout == -1
    limited = desk.jobs.queue(QUEUE).enqueue_call("chores.wait", args=(str(desk.told), "never"), timeout=1)
    assert Queue("plain", connection=desk.redis).enqueue("chores.greet").timeout == 180
    parent()
    desk.heard("begin")
    time.sleep(1.2)  # longer than the other's limit: there is no event for what must not happen
    assert desk.job(job_id).get_status() == "started"
    desk.go.touch()
    desk.heard("end")
    eventually(lambda: limited.get_status() == "failed", 10)


def test_a_job_that_raises_is_failed_and_the_next_one_runs(desk: Desk, parent: Callable[..., Parent]) -> None:
    job_id = desk.enqueue("fail")
    desk.enqueue("greet", "after")
    parent()
    desk.heard("greet after")
    assert desk.job(job_id).get_status() == "failed" and not desk.jobs.live(job_id)
    assert job_id in FailedJobRegistry(QUEUE, connection=desk.redis, serializer="json")


def test_a_killed_work_horse(desk: Desk, parent: Callable[..., Parent]) -> None:
    """Its parent fails the job at once, does not repeat it, and goes on with the next."""
    job_id = desk.waiting_job()
    one = parent()
    desk.heard("begin")
    assert desk.jobs.live(job_id) and not desk.jobs.waiting(job_id)
    one.horse().kill()
    eventually(lambda: desk.job(job_id).get_status() == "failed", 5)
    assert not desk.jobs.live(job_id)
    desk.enqueue("greet", "after")
    desk.heard("greet after")
    assert len(desk.heard("begin")) == 1


def test_a_killed_parent_whose_work_horse_goes_on(desk: Desk, parent: Callable[..., Parent]) -> None:
    """Nobody says any more that the job lives, while it does: only a claim of its own can tell."""
    job_id = desk.waiting_job()
    one = parent()
    desk.heard("begin")
    horse = one.horse()
    one.process.kill()
    one.process.wait()
    assert horse.is_running() and desk.jobs.live(job_id)
    desk.age(job_id)
    assert not desk.jobs.live(job_id), "its last beat is too old"
    assert desk.job(job_id).get_status() == "started"
    desk.go.touch()
    desk.heard("end")
    eventually(lambda: not desk.redis.exists(f"rq:job:{job_id}"), 5, "the orphan itself finishes the job")


def test_an_abandoned_job(desk: Desk, parent: Callable[..., Parent]) -> None:
    """Parent and work-horse killed: rq says `started` until a cleanup a minute later, and never repeats it."""
    job_id = desk.waiting_job()
    one = parent()
    desk.heard("begin")
    horse = one.horse()
    one.process.kill()
    horse.kill()
    one.process.wait()
    registry = StartedJobRegistry(QUEUE, connection=desk.redis, serializer="json")
    registry.cleanup(time.time() + 30)
    assert desk.job(job_id).get_status() == "started"
    desk.age(job_id)
    assert not desk.jobs.live(job_id), "known to us long before"
    registry.cleanup(time.time() + 90)
    assert desk.job(job_id).get_status() == "failed"
    assert not desk.jobs.live(job_id) and desk.redis.llen(f"rq:queue:{QUEUE}") == 0


def test_a_job_lost_between_queue_and_start(desk: Desk) -> None:
    """A parent killed right after it took the job off the list: `queued`, and in no list that anybody reads."""
    job_id = desk.waiting_job()
    desk.redis.lmove(f"rq:queue:{QUEUE}", f"rq:queue:{QUEUE}:intermediate")
    assert desk.job(job_id).get_status() == "queued"
    assert desk.jobs.live(job_id) and not desk.jobs.waiting(job_id), "it may begin in this moment"
    desk.age(job_id)
    assert not desk.jobs.live(job_id)


def test_a_job_whose_keys_were_deleted_wakes_nobody_and_harms_nobody(desk: Desk, parent: Callable[..., Parent]) -> None:
    job_id = desk.waiting_job()
    desk.redis.delete(f"rq:job:{job_id}")
    assert not desk.jobs.live(job_id)
    parent()
    desk.enqueue("greet", "after")
    desk.heard("greet after")


def test_a_delayed_job_needs_a_scheduler(desk: Desk, parent: Callable[..., Parent]) -> None:
    job_id = desk.enqueue("greet", "later", at=datetime.now(UTC) + timedelta(seconds=0.5))
    assert job_id in ScheduledJobRegistry(QUEUE, connection=desk.redis, serializer="json")
    assert desk.jobs.live(job_id) and desk.jobs.waiting(job_id)
    without = parent()
    desk.enqueue("greet", "now")
    desk.heard("greet now")
    time.sleep(1)  # past its time: nothing happens without a scheduler
    assert desk.job(job_id).get_status() == "scheduled"
    assert without.terminate() == 0
    parent("s")
    desk.heard("greet later", 15)


# ---- the process around it ---------------------------------------------------------------------------


def test_sigterm_ends_an_idle_parent(desk: Desk, parent: Callable[..., Parent]) -> None:
    one = parent()
    desk.enqueue("greet", "x")
    desk.heard("greet")
    assert one.terminate() == 0


@pytest.mark.parametrize(("chore", "word"), [("patient", "told True"), ("blocked", "broken off")])
def test_a_job_hears_of_a_warm_stop(desk: Desk, parent: Callable[..., Parent], chore: str, word: str) -> None:
    desk.enqueue(chore)
    desk.enqueue("greet", "next")
    one = parent()
    desk.heard("begin")
    begun = time.monotonic()
    assert one.terminate() == 0
    desk.heard(word)
    assert time.monotonic() - begun < 5
    assert desk.redis.llen(f"rq:queue:{QUEUE}") == 1, "no further job is begun"


def test_a_parent_outlives_redis_being_away_during_a_job(desk: Desk, parent: Callable[..., Parent]) -> None:
    desk.waiting_job()
    one = parent()
    desk.heard("begin")
    desk.server.kill9()
    time.sleep(6)  # longer than its beat: the parent has met the silence
    desk.server.start()
    assert one.process.poll() is None and psutil.Process(one.process.pid).children()
    desk.go.touch()
    desk.heard("end")
    desk.enqueue("greet", "after")
    desk.heard("greet after", 20)
    assert "the job goes on" in one.log.read_text() and "ended by itself" not in one.log.read_text()
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait(20) == 0


def test_a_parent_outlives_redis_being_away_while_it_is_idle(desk: Desk, parent: Callable[..., Parent]) -> None:
    one = parent()
    desk.enqueue("greet", "before")
    desk.heard("greet before")
    desk.server.kill9()
    desk.server.start()
    desk.enqueue("greet", "after")
    desk.heard("greet after", 20)
    assert one.process.poll() is None


def test_sigterm_while_redis_is_away_is_not_lost(desk: Desk, parent: Callable[..., Parent]) -> None:
    """rq asks Redis whether it is busy before it stops: without care the signal ends with that question."""
    idle = parent()
    desk.enqueue("greet", "before")
    desk.heard("greet before")
    desk.server.kill9()
    idle.process.send_signal(signal.SIGTERM)
    assert idle.process.wait(10) == 0, idle.log.read_text()


def test_sigterm_while_redis_is_away_lets_a_job_end(desk: Desk, parent: Callable[..., Parent]) -> None:
    desk.waiting_job()
    one = parent()
    desk.heard("begin")
    desk.server.kill9()
    one.process.send_signal(signal.SIGTERM)
    desk.go.touch()
    desk.heard("end")
    assert one.process.wait(20) == 0, one.log.read_text()


def test_a_parent_waits_for_redis_at_its_start(desk: Desk, parent: Callable[..., Parent]) -> None:
    desk.server.kill9()
    one = parent()
    eventually(lambda: "Redis is away" in one.log.read_text(), 10)
    desk.server.start()
    desk.enqueue("greet", "after")
    desk.heard("greet after", 20)


def test_a_pipeline_needs_its_multi_first(desk: Desk) -> None:
    pipe = desk.redis.pipeline()
    pipe.set("record", "mine")
    with pytest.raises(redis.RedisError, match="without an initial WATCH"):
        desk.enqueue("greet", 1, pipeline=pipe)
