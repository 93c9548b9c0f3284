"""The sweeper: what it repairs, and that one replica sweeps at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from sessiond_common.jobs.queue import Jobs, connect
from sessiond_webhook.demands import sweeper
from sessiond_webhook.demands.machine import Demand, DemandState
from sessiond_webhook.demands.runs import RunLeases
from sessiond_webhook.demands.store import Demands
from sessiond_webhook.demands.sweeper import LOCK, LOCK_TTL, SweepCounts, Sweeper
from sessiond_webhook.demands.tickets import Tickets
from support.servers import Redis, Sessiond, scripted_env
from support.webhook.posting import a_comment


@dataclass
class Stage:
    """Demands on a real Redis, and a sweeper that asks a real sessiond. `meanwhile` runs in the middle of a sweep."""

    demands: Demands
    tickets: Tickets
    meanwhile: Callable[[], object] = lambda: None

    def sweeper(self, interval: float = 0.001) -> Sweeper:
        def wake_posters() -> int:
            self.meanwhile()
            return 0

        return Sweeper(self.demands, RunLeases(self.demands), self.tickets, wake_posters, interval)

    def open(self, key: str = "IC_1") -> Demand:
        found = self.demands.accept(f"delivery-{key}", a_comment(key)).demand
        assert found is not None
        return found


@pytest.fixture
def stage(redis_server: Redis, sessiond: Callable[..., Sessiond]) -> Iterator[Stage]:
    connection = connect(redis_server.url)
    demands = Demands(connection, Jobs(connection))
    yield Stage(demands, Tickets(demands, sessiond(scripted_env()).client("handler")))
    connection.close()


def test_a_missing_ticket_is_taken_and_a_lost_job_is_enqueued_again(stage: Stage) -> None:
    first = stage.open()
    for name in stage.demands.redis.scan_iter("rq:*"):
        stage.demands.redis.delete(name)
    assert stage.sweeper().sweep() == SweepCounts(tickets=1, woken=1)
    after = stage.demands.get("IC_1")
    assert after is not None and after.ticket is not None and after.job != first.job
    assert stage.demands.jobs.live(after.job)


def test_a_demand_that_is_too_old_ends(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.open()
    monkeypatch.setattr(sweeper, "MAX_AGE", 0.0)
    assert stage.sweeper().sweep() == SweepCounts(too_old=1)
    after = stage.demands.get("IC_1")
    assert after is not None and (after.state, after.reason) == (DemandState.FAILED, "too-old")


def test_the_lock_is_a_key_with_a_random_value_and_a_time_to_live(stage: Stage) -> None:
    seen: list[tuple[bytes, int]] = []
    stage.meanwhile = lambda: seen.append((stage.demands.redis.get(LOCK), stage.demands.redis.pttl(LOCK)))  # type: ignore[arg-type]
    for _ in range(2):
        stage.demands.redis.delete(sweeper.DONE)
        assert stage.sweeper().sweep() is not None
        assert not stage.demands.redis.exists(LOCK)
    (first, ttl), (second, _) = seen
    assert first != second and len(first) == 16
    assert (LOCK_TTL - 30) * 1000 < ttl <= LOCK_TTL * 1000


def test_another_replica_does_not_sweep_meanwhile_nor_within_the_interval(stage: Stage) -> None:
    other = replace(stage, meanwhile=lambda: None).sweeper(interval=60.0)
    results: list[SweepCounts | None] = []
    stage.meanwhile = lambda: results.append(other.sweep())
    assert stage.sweeper(interval=60.0).sweep() is not None
    assert results == [None], "the lock is held"
    assert other.sweep() is None, "the interval is not over"
    stage.demands.redis.delete(sweeper.DONE)
    assert other.sweep() is not None


def test_a_sweep_that_took_too_long_leaves_the_lock_of_the_next_alone(stage: Stage) -> None:
    stage.meanwhile = lambda: stage.demands.redis.set(LOCK, "another", px=60_000)
    assert stage.sweeper().sweep() is not None
    assert stage.demands.redis.get(LOCK) == b"another"


def test_the_lock_ends_with_a_sweep_that_fails(stage: Stage) -> None:
    def fail() -> None:
        raise RuntimeError("a test")

    stage.meanwhile = fail
    with pytest.raises(RuntimeError):
        stage.sweeper().sweep()
    assert not stage.demands.redis.exists(LOCK)
