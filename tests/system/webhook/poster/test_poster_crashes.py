"""The crash matrix of the poster: after kill -9 at any named step there is exactly one comment."""

import os
import signal
import time
from collections.abc import Callable

import pytest

from sessiond_webhook.demands.outbox_queue import thread_lock_key
from support.servers import Github, Redis, eventually
from support.webhook.posting import DemandRecords, Poster, a_comment

STEPS = ("claimed", "creation-begun", "created", "recorded")
VICTIMS = ("work-horse", "parent", "both", "Redis", "Redis and rq's keys")
AFTERWARDS = ("answered", "seen, then answered")
Row = Callable[..., None]


def kill(started: Poster, victim: str, horse: int) -> None:
    started.remember()
    if victim == "work-horse":
        os.kill(horse, signal.SIGKILL)
    elif victim == "parent":
        started.kill9(horse=False)
    else:
        started.kill9()


def created(github: Github) -> int:
    """Return the number of created comments. A "Seen" note counts too, because the answer only edits it."""
    return len([one for one in github.log() if one["did"] == "created"])


@pytest.mark.parametrize("when", AFTERWARDS)
@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("step", STEPS)
def test_each_crash_leaves_exactly_one_comment(
    redis_server: Redis, records: DemandRecords, github: Github, poster: Callable[..., Poster], matrix: Row, step: str,
    victim: str, when: str,
) -> None:  # fmt: skip
    started = poster(github.env())
    point = f"poster-{step}"
    started.hold(point)
    key = records.ask(a_comment())
    if when == "answered":
        records.answer(key)
    horse = started.wait_until_reached(point)
    if victim.startswith("Redis"):
        redis_server.kill9()
        redis_server.start()
        if victim != "Redis":
            for name in records.demands.redis.scan_iter("rq:*"):
                records.demands.redis.delete(name)
    else:
        kill(started, victim, horse)
    started.release(point)
    if when != "answered":
        records.answer(key)
    if victim in ("parent", "both"):
        poster(github.env(), name="next")
    records.posted(key, seconds=30, sweep=True)
    eventually(lambda: not records.posts.threads(), 10, "nothing pending")
    body = github.log()[-1]["body"].split("\n")[0]
    matrix("posting", victim=victim, step=step, then=when, comments=created(github), ends="posted", reads=body)
    assert created(github) == 1
    assert body == "It is a test."


def test_a_request_that_is_in_flight_when_the_poster_dies_is_not_repeated(
    records: DemandRecords, github: Github, poster: Callable[..., Poster]
) -> None:
    """GitHub creates the comment only after another run has the lock. A run that lists at once would post it again."""
    env = {**github.env(), "POSTER_DEADLINE": "3", "POSTER_CLAIM": "9"}
    started = poster(env)
    github.fault("delay", seconds=2.5)
    key = records.ask(a_comment())
    records.answer(key)
    asked = eventually(lambda: [one for one in github.requests() if one["method"] == "POST"])
    started.kill9()
    records.demands.redis.delete(thread_lock_key(records.get(key).comment.thread))
    assert time.time() - asked[0]["at"] < 1.0
    poster(env, name="next")
    records.posted(key, seconds=30, sweep=True)
    eventually(lambda: github.requests()[0]["status"], 10, "the first request is done")
    assert created(github) == 1


def test_the_work_horse_of_a_killed_parent_finishes_its_post(
    records: DemandRecords, github: Github, poster: Callable[..., Poster]
) -> None:
    """The run holds the thread's lock and renews it, so no other poster posts in that thread meanwhile."""
    started = poster(github.env())
    started.hold("poster-creation-begun")
    key = records.ask(a_comment())
    records.answer(key)
    started.wait_until_reached("poster-creation-begun")
    kill(started, "parent", 0)
    poster(github.env(), name="next")
    thread = records.get(key).comment.thread
    for _ in range(40):
        records.posts.wake(thread)
        eventually(lambda: not records.posts.has_job(thread), 10)
    assert records.posts.is_locked(thread) and github.log() == []
    started.release("poster-creation-begun")
    records.posted(key)
    assert created(github) == 1
