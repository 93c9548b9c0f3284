"""The process around rq: warm stops, outages of Redis, and both at once. The parents and work-horses are real."""

import signal
import time
from collections.abc import Callable

import psutil
import pytest

from support.jobs.job_scene import QUEUE, JobScene, Parent
from support.servers import eventually


def test_sigterm_ends_an_idle_parent(scene: JobScene, parent: Callable[..., Parent]) -> None:
    one = parent()
    scene.enqueue("greet", "x")
    scene.reported("greet")
    assert one.terminate() == 0


@pytest.mark.parametrize(("job", "word"), [("stoppable", "stopping True"), ("blocked", "interrupted")])
def test_a_warm_stop_reaches_the_running_job(
    scene: JobScene, parent: Callable[..., Parent], job: str, word: str
) -> None:
    scene.enqueue(job)
    scene.enqueue("greet", "next")
    one = parent()
    scene.reported("begin")
    begun = time.monotonic()
    assert one.terminate() == 0
    scene.reported(word)
    assert time.monotonic() - begun < 5
    assert scene.redis.llen(f"rq:queue:{QUEUE}") == 1, "no further job is begun"


def test_a_parent_survives_an_outage_of_redis_during_a_job(scene: JobScene, parent: Callable[..., Parent]) -> None:
    scene.waiting_job()
    one = parent()
    scene.reported("begin")
    scene.server.kill9()
    time.sleep(6)  # longer than the parent's monitoring interval, so that it notices the outage
    scene.server.start()
    assert one.process.poll() is None and psutil.Process(one.process.pid).children()
    scene.go.touch()
    scene.reported("end")
    scene.enqueue("greet", "after")
    scene.reported("greet after", 20)
    assert "the job goes on" in one.log.read_text() and "ended by itself" not in one.log.read_text()
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait(20) == 0


def test_a_parent_survives_an_outage_of_redis_while_it_is_idle(scene: JobScene, parent: Callable[..., Parent]) -> None:
    one = parent()
    scene.enqueue("greet", "before")
    scene.reported("greet before")
    scene.server.kill9()
    scene.server.start()
    scene.enqueue("greet", "after")
    scene.reported("greet after", 20)
    assert one.process.poll() is None


def test_sigterm_while_redis_is_away_is_not_lost(scene: JobScene, parent: Callable[..., Parent]) -> None:
    """rq asks Redis whether it is busy before it stops. An error of that question must not lose the signal."""
    idle = parent()
    scene.enqueue("greet", "before")
    scene.reported("greet before")
    scene.server.kill9()
    idle.process.send_signal(signal.SIGTERM)
    assert idle.process.wait(10) == 0, idle.log.read_text()


def test_sigterm_while_redis_is_away_lets_a_job_end(scene: JobScene, parent: Callable[..., Parent]) -> None:
    scene.waiting_job()
    one = parent()
    scene.reported("begin")
    scene.server.kill9()
    one.process.send_signal(signal.SIGTERM)
    scene.go.touch()
    scene.reported("end")
    assert one.process.wait(20) == 0, one.log.read_text()


def test_a_parent_waits_for_redis_at_its_start(scene: JobScene, parent: Callable[..., Parent]) -> None:
    scene.server.kill9()
    one = parent()
    eventually(lambda: "cannot reach Redis; retrying" in one.log.read_text(), 10)
    scene.server.start()
    scene.enqueue("greet", "after")
    scene.reported("greet after", 20)
