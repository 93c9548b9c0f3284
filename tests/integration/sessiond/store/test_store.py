"""The step script on a real server: each answer, and no step that runs twice."""

import threading
import time
from collections.abc import Iterator

import pytest
import redis as redis_library
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from sessiond.lock.rules import Kind
from sessiond.lock.state import Drain, Lease, Lock, Ticket
from sessiond.store import codec, diff
from sessiond.store.connection import RedisUnavailable
from sessiond.store.store import (
    RECENT,
    RECENT_SIZE,
    Ahead,
    Behind,
    CommitResult,
    Deposed,
    NotHead,
    Store,
    StoreStep,
)
from support.servers import Redis

BASE = "sessiond:{octo/hello}:"


@pytest.fixture(scope="module")
def server() -> Iterator[Redis]:
    made = Redis()
    yield made
    made.close()


@pytest.fixture
def raw(server: Redis) -> redis_library.Redis:
    client = redis_library.Redis.from_url(server.url, decode_responses=True)
    client.flushall()
    return client


@pytest.fixture
def store(server: Redis, raw: redis_library.Redis) -> Iterator[Store]:
    raw.hset(f"{BASE}meta", mapping={"epoch": 10, "version": 0, "instance": "me"})
    made = Store(server.url, "octo/hello", "me")
    yield made
    made.close()


def step(version: int, name: str, *commands: codec.RedisCommand, **more: object) -> StoreStep:
    return StoreStep(10, version, name, list(commands), [("said", {"by": name})], **more)  # type: ignore[arg-type]


def test_a_step_with_a_known_id_is_not_applied_again(store: Store, raw: redis_library.Redis) -> None:
    one = step(0, "s1", ("ZADD", "queue", "5", "a"))
    assert [store.commit(one), store.commit(one)] == [CommitResult.APPLIED, CommitResult.REPEATED]
    assert raw.xlen(f"{BASE}ledger") == 1
    assert raw.hget(f"{BASE}meta", "version") == "1"


def test_a_step_with_another_epoch_or_version_is_refused_and_writes_nothing(
    store: Store, raw: redis_library.Redis
) -> None:
    store.commit(step(0, "s1"))
    with pytest.raises(Ahead):
        store.commit(step(0, "s2", ("ZADD", "queue", "5", "a")))
    with pytest.raises(Behind):
        store.commit(step(7, "s3", ("ZADD", "queue", "5", "a")))
    raw.hset(f"{BASE}meta", mapping={"epoch": 11, "instance": "other", "url": "http://other"})
    with pytest.raises(Deposed) as deposed:
        store.commit(step(1, "s4", ("ZADD", "queue", "5", "a")))
    assert deposed.value.url == "http://other"
    assert raw.zcard(f"{BASE}queue") == 0 and raw.xlen(f"{BASE}ledger") == 1


def test_a_reset_step_restores_what_redis_lost(store: Store, raw: redis_library.Redis) -> None:
    raw.set(f"{BASE}lease", "stale")
    assert store.commit(step(41, "s1", ("ZADD", "queue", "5", "a"), reset=True)) is CommitResult.APPLIED
    assert raw.hget(f"{BASE}meta", "version") == "42"
    assert raw.get(f"{BASE}lease") is None and raw.zscore(f"{BASE}queue", "a") == 5


def test_the_latest_records_are_kept_for_a_reset_up_to_a_size(store: Store) -> None:
    for number in range(RECENT + 5):
        store.commit(step(number, f"s{number}", ("SETEX", f"small{number}", "60", "x")))
    assert [suffix for _, suffix, *_ in store.recent_commands()] == [f"small{n}" for n in range(5, RECENT + 5)]
    for number in range(3):
        large = ("SETEX", f"large{number}", "60", "x" * (RECENT_SIZE // 2))
        store.commit(step(RECENT + 5 + number, f"l{number}", large))
    assert [suffix for _, suffix, *_ in store.recent_commands()] == ["large1", "large2"]


def test_the_script_is_loaded_again_on_a_server_that_lost_it(store: Store, raw: redis_library.Redis) -> None:
    store.commit(step(0, "s1"))
    raw.script_flush()
    assert store.commit(step(1, "s2")) is CommitResult.APPLIED


def test_a_step_whose_answer_was_lost_is_not_applied_twice(
    server: Redis, store: Store, raw: redis_library.Redis
) -> None:
    store.commit(step(0, "s1"))
    store._steps._deadline = 0.3
    store._steps.close()
    store._steps.call("PING")
    server.pause()
    timer = threading.Timer(1.0, server.resume)
    timer.start()
    with pytest.raises(RedisUnavailable):
        store.commit(step(1, "s2", ("ZADD", "queue", "5", "a")))
    timer.join()
    ends = time.monotonic() + 5
    while time.monotonic() < ends:
        try:
            outcome = store.commit(step(1, "s2", ("ZADD", "queue", "5", "a")))
            break
        except RedisUnavailable:
            continue
    assert outcome in (CommitResult.REPEATED, CommitResult.APPLIED)
    assert raw.xlen(f"{BASE}ledger") == 2


SCORES = some.dictionaries(some.sampled_from("abcdefgh"), some.integers(1, 50), min_size=1)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(queue=SCORES, data=some.data())
def test_only_the_head_is_granted_apart_from_skipped_tickets(
    server: Redis, queue: dict[str, int], data: some.DataObject
) -> None:
    """The script's check is compared with a plain recount."""
    raw = redis_library.Redis.from_url(server.url, decode_responses=True)
    raw.flushall()
    raw.hset(f"{BASE}meta", mapping={"epoch": 10, "version": 0, "instance": "me"})
    raw.zadd(f"{BASE}queue", queue)
    ticket = data.draw(some.sampled_from(sorted(queue)))
    skipped = data.draw(some.frozensets(some.sampled_from("abcdefgh")))
    removed = data.draw(some.frozensets(some.sampled_from(sorted(queue)))) - {ticket}
    ahead = {t for t, score in queue.items() if score < queue[ticket] and t not in removed}
    store = Store(server.url, "octo/hello", "me")
    commands = [("ZREM", "queue", t) for t in sorted(removed)] + [("ZREM", "queue", ticket)]
    try:
        outcome = store.commit(step(0, "s1", *commands, grant=(ticket, skipped)))
        assert outcome is CommitResult.APPLIED and ahead <= skipped
    except NotHead as refused:
        assert refused.head in ahead - skipped
        assert raw.zcard(f"{BASE}queue") == len(queue)
    finally:
        store.close()
        raw.close()


def test_a_lock_loads_as_it_was_stored_without_presence(store: Store) -> None:
    queued = Ticket("tk-1", Kind.HANDLER, 21, "k", "h", frozenset({"g"}), lapsed=True, losses=2)
    leased = Ticket("tk-2", Kind.WORKER, 99, None, "w")
    lock = Lock(7, 12, {"tk-1": queued, "tk-2": leased}, Lease(12, "tk-2", Kind.WORKER, "w", True), None, "tu-1")
    extras = codec.Extras(codec.LeaseExtras("secret", 9.5, "then"), {"id": "tu-1"}, {"tk-1": "taken"})
    store.commit(step(0, "s1", *diff.diff(Lock(), lock, extras)))
    stored = store.read_state()
    assert stored.lock == lock
    assert stored.extras.lease == extras.lease and stored.extras.taken["tk-1"] == "taken"
    assert stored.open == {"id": "tu-1", "turn": "tu-1"}
    drained = Lock(7, 12, {"tk-1": queued}, None, Drain(12, "tk-2", Kind.WORKER, codec.LeaseEnd.FORCED), "tu-1")
    store.commit(step(1, "s2", *diff.diff(lock, drained, extras)))
    assert store.read_state().lock == drained
