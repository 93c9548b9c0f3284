"""The run lease of a task on a real Redis: one run at a time, renewed while it is held, lost only to another run."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import redis

from sessiond_common.jobs.queue import connect
from sessiond_worker.tasks.run_lease import RunLease
from sessiond_worker.tasks.store import bell_key, run_lease_key
from support.servers import Redis, eventually

TASK = "task-x-1"
KEY = run_lease_key(TASK)
Make = Callable[..., RunLease]


@pytest.fixture
def connection(redis_server: Redis) -> "redis.Redis":
    return connect(redis_server.url)


@pytest.fixture
def make(redis_server: Redis) -> Iterator[Make]:
    """Make run leases on connections of their own: make(token, ttl)."""
    with ExitStack() as stack:

        def made(token: str, ttl: float = 60.0) -> RunLease:
            lease = RunLease(connect(redis_server.url), TASK, token, ttl)
            stack.callback(lease.release)
            return lease

        yield made


def test_one_run_holds_the_task_until_it_releases_it(make: Make, connection: "redis.Redis") -> None:
    first, second = make("run-1"), make("run-2")
    assert first.acquire() and first.acquire() and not second.acquire()
    second.release()
    assert connection.get(KEY) == b"run-1", "a release of another run changes nothing"
    left = connection.pttl(KEY)
    assert 0 < left <= 60_000
    first.release()
    assert not connection.exists(KEY) and second.acquire()


def test_a_run_lease_is_renewed_while_it_is_held(make: Make, connection: "redis.Redis") -> None:
    lease = make("run-1", ttl=0.6)
    assert lease.acquire()
    lease.keep(lambda: None, lambda: pytest.fail("lost"))
    connection.pexpire(KEY, 60_000)
    eventually(lambda: 0 < connection.pttl(KEY) <= 600, 5, "renewed with its own time to live")
    connection.delete(KEY)
    eventually(lambda: connection.get(KEY) == b"run-1", 5, "taken back after it expired and no run acquired it")
    lease.release()
    assert not connection.exists(KEY)


def test_a_notification_wakes_the_run_and_the_lease_of_another_run_ends_it(
    make: Make, connection: "redis.Redis"
) -> None:
    lease, rung, lost = make("run-1", ttl=0.6), threading.Semaphore(0), threading.Event()
    assert lease.acquire()
    lease.keep(rung.release, lost.set)
    for _ in range(2):
        connection.rpush(bell_key(TASK), "look")
        assert rung.acquire(timeout=5)
    connection.set(KEY, "run-2")
    assert lost.wait(5)
    lease.release()
    assert connection.get(KEY) == b"run-2"


def test_an_outage_of_redis_does_not_lose_the_run_lease(
    make: Make, connection: "redis.Redis", redis_server: Redis
) -> None:
    lease, rung = make("run-1"), threading.Event()
    assert lease.acquire()
    lease.keep(rung.set, lambda: pytest.fail("lost"))
    redis_server.kill9()
    redis_server.start()
    connection.rpush(bell_key(TASK), "look")
    assert rung.wait(20) and connection.get(KEY) == b"run-1"
