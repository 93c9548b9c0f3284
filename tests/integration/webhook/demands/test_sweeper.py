"""The sweeper: the demands that it repairs, and one sweeping replica at a time."""

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
class SweepSetup:
    """Demands on a real Redis, and a sweeper that calls a real sessiond. `meanwhile` runs during each sweep."""

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
def setup(redis_server: Redis, sessiond: Callable[..., Sessiond]) -> Iterator[SweepSetup]:
    connection = connect(redis_server.url)
    demands = Demands(connection, Jobs(connection))
    yield SweepSetup(demands, Tickets(demands, sessiond(scripted_env()).client("handler")))
    connection.close()


def test_a_missing_ticket_is_taken_and_a_lost_job_is_enqueued_again(setup: SweepSetup) -> None:
    first = setup.open()
    for name in setup.demands.redis.scan_iter("rq:*"):
        setup.demands.redis.delete(name)
    assert setup.sweeper().sweep() == SweepCounts(tickets=1, woken=1)
    after = setup.demands.get("IC_1")
    assert after is not None and after.ticket is not None and after.job != first.job
    assert setup.demands.jobs.live(after.job)


def test_a_demand_that_is_too_old_ends(setup: SweepSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    setup.open()
    monkeypatch.setattr(sweeper, "MAX_AGE", 0.0)
    assert setup.sweeper().sweep() == SweepCounts(too_old=1)
    after = setup.demands.get("IC_1")
    assert after is not None and (after.state, after.reason) == (DemandState.FAILED, "too-old")


def test_the_sweep_lock_is_a_key_with_a_random_value_and_a_time_to_live(setup: SweepSetup) -> None:
    seen: list[tuple[bytes, int]] = []
    setup.meanwhile = lambda: seen.append((setup.demands.redis.get(LOCK), setup.demands.redis.pttl(LOCK)))  # type: ignore[arg-type]
    for _ in range(2):
        setup.demands.redis.delete(sweeper.DONE)
        assert setup.sweeper().sweep() is not None
        assert not setup.demands.redis.exists(LOCK)
    (first, ttl), (second, _) = seen
    assert first != second and len(first) == 16
    assert (LOCK_TTL - 30) * 1000 < ttl <= LOCK_TTL * 1000


def test_another_replica_does_not_sweep_at_the_same_time_or_within_the_interval(setup: SweepSetup) -> None:
    other = replace(setup, meanwhile=lambda: None).sweeper(interval=60.0)
    results: list[SweepCounts | None] = []
    setup.meanwhile = lambda: results.append(other.sweep())
    assert setup.sweeper(interval=60.0).sweep() is not None
    assert results == [None], "the lock is held"
    assert other.sweep() is None, "the interval is not over"
    setup.demands.redis.delete(sweeper.DONE)
    assert other.sweep() is not None


def test_a_sweep_that_took_too_long_does_not_release_the_lock_of_the_next(setup: SweepSetup) -> None:
    setup.meanwhile = lambda: setup.demands.redis.set(LOCK, "another", px=60_000)
    assert setup.sweeper().sweep() is not None
    assert setup.demands.redis.get(LOCK) == b"another"


def test_a_failed_sweep_releases_the_lock(setup: SweepSetup) -> None:
    def fail() -> None:
        raise RuntimeError("a test")

    setup.meanwhile = fail
    with pytest.raises(RuntimeError):
        setup.sweeper().sweep()
    assert not setup.demands.redis.exists(LOCK)
