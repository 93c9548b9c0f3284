"""The crash matrix of the poster: kill -9 at each named step leaves exactly one comment."""

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
    """Count the created comments. A poster that ran before the answer created a "Seen" note and edited it."""
    return len([one for one in github.log() if one["did"] == "created"])


@pytest.mark.parametrize("when", AFTERWARDS)
@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("step", STEPS)
def test_one_comment_whoever_dies(
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


def test_what_is_on_its_way_when_the_poster_dies_is_waited_for(
    records: DemandRecords, github: Github, poster: Callable[..., Poster]
) -> None:
    """GitHub creates the comment only after another run has the lock. A run that lists at once would post it again."""
    patient = {**github.env(), "POSTER_DEADLINE": "3", "POSTER_CLAIM": "9"}
    started = poster(patient)
    github.fault("delay", seconds=2.5)
    key = records.ask(a_comment())
    records.answer(key)
    asked = eventually(lambda: [one for one in github.requests() if one["method"] == "POST"])
    started.kill9()
    records.demands.redis.delete(thread_lock_key(records.get(key).comment.thread))
    assert time.time() - asked[0]["at"] < 1.0
    poster(patient, name="next")
    records.posted(key, seconds=30, sweep=True)
    eventually(lambda: github.requests()[0]["status"], 10, "the first request is done")
    assert created(github) == 1


def test_a_parent_that_dies_leaves_its_work_horse_to_finish(
    records: DemandRecords, github: Github, poster: Callable[..., Poster]
) -> None:
    """Meanwhile no other poster posts there: the run holds the lock and renews it."""
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
        eventually(lambda: not records.posts.awake(thread), 10)
    assert records.posts.is_locked(thread) and github.log() == []
    started.release("poster-creation-begun")
    records.posted(key)
    assert created(github) == 1
