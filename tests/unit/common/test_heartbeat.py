"""A heartbeat runs until it is stopped or its lease is lost. An outage of Redis does not end it."""

import threading
from collections.abc import Callable, Iterable

import pytest
import redis

from sessiond_common.heartbeat import Heartbeat

LONG = 60.0


def beats(*results: bool | Exception) -> tuple[Callable[[], bool], threading.Event]:
    """Return a `beat` that gives these results in order, and an event that the last one sets."""
    left, over = iter(results), threading.Event()
    counted = iter(range(1, len(results) + 1))

    def beat() -> bool:
        result = next(left, True)
        if next(counted, 0) == len(results):
            over.set()
        if isinstance(result, Exception):
            raise result
        return result

    return beat, over


def threads(name: str) -> Iterable[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_it_beats_until_it_is_stopped() -> None:
    beat, over = beats(True, True, True)
    heartbeat = Heartbeat("until-stopped", 0.001, beat, pytest.fail)
    with heartbeat.running():
        assert over.wait(5)
        assert threads("until-stopped") and not heartbeat.stopped
    assert heartbeat.stopped and not threads("until-stopped")


def test_a_lost_lease_ends_it() -> None:
    beat, over = beats(True, False)
    heartbeat = Heartbeat("lost", 0.001, beat, pytest.fail)
    heartbeat.start()
    assert over.wait(5)
    for thread in threads("lost"):
        thread.join(5)
    assert not threads("lost") and not heartbeat.stopped
    heartbeat.stop()


def test_an_outage_is_reported_and_the_next_beat_comes_after_the_retry_time() -> None:
    away = redis.ConnectionError("away")
    beat, over = beats(away, away, True)
    errors: list[redis.RedisError] = []
    # Only the retry time can cause the second and the third beat. The interval is a minute.
    first = threading.Event()
    heartbeat = Heartbeat("away", 0.001, beat, lambda error: (errors.append(error), first.set())[0], retry=0.001)
    with heartbeat.running():
        assert first.wait(5) and over.wait(5)
    assert errors == [away, away]


def test_it_can_be_stopped_from_its_own_beat_or_before_its_start() -> None:
    over = threading.Event()

    def beat() -> bool:
        heartbeat.stop()
        over.set()
        return True

    heartbeat = Heartbeat("own", 0.001, beat, pytest.fail)
    heartbeat.start()
    assert over.wait(5)
    for thread in threads("own"):
        thread.join(5)
    assert not threads("own")
    Heartbeat("never", LONG, beat, pytest.fail).stop()


def test_a_stop_does_not_wait_for_the_interval() -> None:
    heartbeat = Heartbeat("long", LONG, lambda: pytest.fail("no beat is due"), pytest.fail)
    with heartbeat.running():
        assert threads("long")
    assert not threads("long")
