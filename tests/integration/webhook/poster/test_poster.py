"""The poster on a real Redis and the loopback GitHub: what it posts where, and in which order."""

import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sessiond_common.clock import now_text
from sessiond_webhook.demands import machine
from sessiond_webhook.demands.comment import CommentSource
from sessiond_webhook.demands.machine import DemandState
from sessiond_webhook.demands.outbox_queue import sweep_posts
from sessiond_webhook.demands.store import posts_key, texts
from sessiond_webhook.poster import notes
from support.servers import Github, eventually
from support.webhook.posting import Bench, Poster, a_comment

Posters = Callable[..., Poster]
KINDS = [CommentSource.ISSUE_COMMENT, CommentSource.REVIEW_COMMENT, CommentSource.REVIEW]


@pytest.mark.parametrize("source", KINDS)
def test_seen_and_then_edited_in_place(bench: Bench, github: Github, poster: Posters, source: CommentSource) -> None:
    root = github.comment(2, kind="review") if source is CommentSource.REVIEW_COMMENT else None
    poster(github.env())
    key = bench.ask(a_comment(number=2, source=source, root=root, id=root or 501))
    bench.shown(key)
    bench.answer(key, "Because of @mona.")
    (demand,) = bench.posted(key)
    first, second = github.log()
    assert (first["did"], second["did"]) == ("created", "edited")
    assert first["id"] == second["id"]
    assert first["thread"] == second["thread"] == (f"Octo/Hello#2/{root}" if root else "Octo/Hello#2")
    assert first["kind"] == ("review" if root else "issue")
    assert first["body"].startswith("Seen.")
    assert second["body"] == f"Because of @\u200bmona.\n\n{notes.marker(key)}"
    assert demand.note is not None and demand.note.url == second["url"]
    assert bench.get(key).at["posted"]
    bench.idle()


def test_the_place_in_the_queue_is_shown(bench: Bench, github: Github, poster: Posters) -> None:
    poster(github.env())
    key = bench.ask(a_comment())
    bench.shown(key)
    bench.move(key, lambda known: replace(known, place=3))
    eventually(lambda: "place 3" in github.log()[-1]["body"])
    bench.idle()
    assert [one["did"] for one in github.log()] == ["created", "edited"]


def test_an_answer_that_comes_first_is_posted_without_seen(bench: Bench, github: Github, poster: Posters) -> None:
    key = bench.ask(a_comment())
    bench.answer(key)
    poster(github.env())
    bench.posted(key)
    assert [one["body"].split("\n")[0] for one in github.log()] == ["It is a test."]


@pytest.mark.parametrize("note_first", [True, False])
def test_a_reason_is_told(bench: Bench, github: Github, poster: Posters, note_first: bool) -> None:
    poster(github.env())
    key = bench.ask(a_comment())
    if note_first:
        bench.shown(key)
    bench.move(key, lambda known: machine.failed(known, "lost-thrice: and details for logs", now_text()))
    bench.idle()
    written = github.log()
    assert len({one["id"] for one in written}) == 1
    assert written[-1]["body"].split("\n")[0] == notes.REASONS["lost-thrice"]
    assert bench.get(key).state is DemandState.FAILED


def test_a_comment_that_was_deleted_unseen_is_not_spoken_of(bench: Bench, github: Github, poster: Posters) -> None:
    key = bench.ask(a_comment())
    assert bench.demands.delete("delivery-2", key).outcome == "withdrawn"
    poster(github.env())
    bench.idle()
    assert github.log() == []


def test_answers_of_a_thread_stand_in_the_order_of_their_comments(
    bench: Bench, github: Github, poster: Posters
) -> None:
    """The second comment's answer replaces its own pending note. It must not overtake the first comment's answer."""
    poster(github.env(), name="a")
    poster(github.env(), name="b")
    keys = [bench.ask(a_comment(f"IC_{9 - n}")) for n in range(4)]
    bench.shown(keys[0])
    for mode, more in (("error", {"status": 502}), ("secondary", {"seconds": 1}), ("cut", {}), ("drop", {})):
        github.fault(mode, "(POST|PATCH) .*comments", **more)
    for n, key in enumerate(keys):
        bench.answer(key, f"answer {n}")
    bench.posted(*keys, seconds=40, sweep=True)
    answers = [one["body"].split("\n")[0] for one in github.log() if one["body"].startswith("answer")]
    assert list(dict.fromkeys(answers)) == [f"answer {n}" for n in range(4)]
    assert len({one["id"] for one in github.log()}) == 4


def test_an_answer_does_not_overtake_because_its_seen_note_still_waits(bench: Bench, github: Github) -> None:
    first, second = bench.ask(a_comment("IC_2")), bench.ask(a_comment("IC_1"))
    bench.demands.redis.zrem(posts_key("Octo/Hello#1"), first)  # its note is up to date
    bench.answer(second)
    bench.answer(first)
    assert texts(bench.demands.redis.zrange(posts_key("Octo/Hello#1"), 0, -1)) == [first, second]


def test_two_posters_at_once_post_each_note_once(bench: Bench, github: Github, poster: Posters) -> None:
    for name in "abc":
        poster(github.env(), name=name)
    for number in range(10, 14):
        github.thread(number)
    keys = [bench.ask(a_comment(f"IC_{n}", number=10 + n % 4)) for n in range(16)]
    for key in keys:
        bench.answer(key, f"answer to {key}")
        bench.posts.wake(bench.get(key).comment.thread)
    bench.posted(*keys, seconds=60, sweep=True)
    created = [one for one in github.log() if one["did"] == "created"]
    assert len(created) == 16


FAULTS: dict[str, dict[str, Any]] = {
    "primary": {"mode": "primary", "seconds": 2}, "primary, 429": {"mode": "primary", "seconds": 2, "status": 429},
    "secondary": {"mode": "secondary", "seconds": 2},
    "secondary, 429": {"mode": "secondary", "seconds": 2, "status": 429},
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_rate_limit_is_waited_for_as_told_by_all(
    bench: Bench, github: Github, poster: Posters, fault: dict[str, Any]
) -> None:
    github.fault(**fault)
    keys = [bench.ask(a_comment("IC_1", 1)), bench.ask(a_comment("IC_2", 2))]
    for key in keys:
        bench.answer(key)
    poster(github.env())
    bench.posted(*keys, seconds=20)
    asked = github.requests()
    assert asked[0]["status"] == fault.get("status", 403)
    assert asked[1]["at"] - asked[0]["at"] >= 2.0, "nobody asks before the time that was told"
    assert [one["status"] for one in asked[1:]] == [201, 201]


def test_a_limit_is_waited_for_although_the_schedule_is_lost(bench: Bench, github: Github, poster: Posters) -> None:
    github.fault("secondary", seconds=2)
    key = bench.ask(a_comment())
    poster(github.env())
    eventually(lambda: bench.posts.wait("Octo/Hello#1").until > 0)
    for name in bench.demands.redis.scan_iter("rq:*"):
        if b"worker" not in name:
            bench.demands.redis.delete(name)
    assert sweep_posts(bench.demands) == 0, "it is not time yet"
    bench.answer(key)
    bench.posted(key, sweep=True)
    first, second = github.requests()
    assert second["at"] - first["at"] >= 2.0


def test_5xx_is_tried_again_with_growing_pauses(bench: Bench, github: Github, poster: Posters) -> None:
    poster(github.env())
    key = bench.ask(a_comment())
    bench.shown(key)
    bench.idle()
    github.fault("error", "PATCH", times=3, status=500)
    bench.answer(key)
    bench.posted(key, seconds=30)
    assert [one["status"] for one in github.requests()][-4:] == [500, 500, 500, 200]


UNKNOWN: dict[str, dict[str, Any]] = {
    "done, the connection cut": {"mode": "cut"},
    "not done, the connection cut": {"mode": "drop"},
    "not done, 502": {"mode": "error", "status": 502},
    "done, after the client's deadline": {"mode": "delay", "seconds": 1.4},
}


@pytest.mark.parametrize("fault", UNKNOWN.values(), ids=UNKNOWN)
def test_after_an_unknown_outcome_there_is_one_comment(
    bench: Bench, github: Github, poster: Posters, fault: dict[str, Any]
) -> None:
    github.fault(**fault)
    github.fault("lag", seconds=0.3)
    key = bench.ask(a_comment())
    poster(github.env())
    bench.shown(key)
    bench.answer(key)
    bench.posted(key, seconds=30)
    assert len([one for one in github.log() if one["did"] == "created"]) == 1
    listed = [one for one in github.requests() if one["method"] == "GET" and "comments" in one["path"]]
    assert len(listed) == 1


def test_a_strangers_comment_with_the_marker_is_not_ours(bench: Bench, github: Github, poster: Posters) -> None:
    github.fault("drop")
    comment = a_comment()
    stranger = github.comment(1, f"Fake\n\n{notes.marker(comment.key)}")
    key = bench.ask(comment)
    bench.answer(key)
    poster(github.env())
    (demand,) = bench.posted(key, seconds=30)
    assert demand.note is not None and demand.note.id != stranger
    assert [(one["did"], one["author"]) for one in github.log()] == [("created", Github.BOT["id"])]


def test_our_text_with_anothers_marker_is_not_anothers_note(bench: Bench, github: Github, poster: Posters) -> None:
    first, second = bench.ask(a_comment("IC_1")), bench.ask(a_comment("IC_2"))
    bench.answer(first, f"Look:\n\n{notes.marker(second)}")
    bench.answer(second)
    github.fault("drop", times=2)
    poster(github.env())
    bench.posted(first, second, seconds=30)
    assert len({one["id"] for one in github.log()}) == 2


@pytest.mark.parametrize(("locked", "number", "status"), [(True, 1, 403), (False, 404, 404)])
def test_what_github_refuses_for_good_fails(
    bench: Bench, github: Github, poster: Posters, locked: bool, number: int, status: int
) -> None:
    github.thread(1, locked=locked)
    key = bench.ask(a_comment(number=number))
    bench.answer(key)
    other = bench.ask(a_comment("IC_2", number=2))
    bench.answer(other)
    poster(github.env())
    (failed,) = bench.until(DemandState.FAILED, key)
    assert failed.reason is not None and failed.reason.startswith(f"unpostable: {status} ")
    assert not failed.tell
    bench.posted(other)
    bench.idle()


def test_a_seen_note_that_cannot_be_posted_leaves_the_demand_alone(
    bench: Bench, github: Github, poster: Posters
) -> None:
    github.thread(1, locked=True)
    poster(github.env())
    key = bench.ask(a_comment())
    bench.idle()
    assert bench.get(key).state is DemandState.OPEN
    github.thread(1, locked=False)
    bench.answer(key)
    bench.posted(key)


def test_a_note_that_somebody_deleted_is_written_anew(bench: Bench, github: Github, poster: Posters) -> None:
    poster(github.env())
    key = bench.ask(a_comment())
    bench.shown(key)
    github.order("delete", id=bench.note(key).id)
    bench.answer(key)
    bench.posted(key)
    assert [one["did"] for one in github.log()] == ["created", "created"]


def test_what_changes_while_it_is_posted_is_posted_too(bench: Bench, github: Github, poster: Posters) -> None:
    github.fault("delay", seconds=0.8)
    key = bench.ask(a_comment())
    poster(github.env())
    eventually(lambda: any(one["method"] == "POST" for one in github.requests()))
    bench.answer(key)
    bench.posted(key)
    assert [one["did"] for one in github.log()] == ["created", "edited"]


@pytest.mark.parametrize("text", ["The key is {}.", "The key is\n{spaced}", "x {base64} y"])
def test_a_secret_is_withheld_and_that_is_told(bench: Bench, github: Github, poster: Posters, text: str) -> None:
    import base64

    secret = "sk-model-0123456789"
    hidden = text.format(secret, spaced=" ".join(secret), base64=base64.b64encode(f"a {secret}".encode()).decode())
    key = bench.ask(a_comment())
    bench.answer(key, hidden)
    started = poster({**github.env(), "ANTHROPIC_API_KEY": secret})
    bench.until(DemandState.FAILED, key)
    bench.idle()
    (one,) = github.log()
    assert one["body"].split("\n")[0] == notes.REASONS["secret-in-answer"]
    assert bench.get(key).reason == "secret-in-answer"
    assert secret not in started.log() and Github.TOKEN not in started.log()


def test_without_a_token_answers_stand_in_the_outbox(bench: Bench, poster: Posters) -> None:
    started = poster()
    assert re.search(r"^webhook.poster: no GITHUB_TOKEN .*answers go to .*outbox$", started.log(), re.MULTILINE)
    key = bench.ask(a_comment(number=2, source=CommentSource.REVIEW_COMMENT, root=7))
    bench.shown(key)
    bench.answer(key, "It is **so**.")
    (demand,) = bench.posted(key)
    assert demand.note is not None and demand.note.url is not None
    path = demand.note.url.removeprefix("file://")
    assert path.endswith("outbox/Octo/Hello/2/7/IC_1.md")
    with open(path) as file:
        text = file.read()
    assert "> What is this?" in text and "It is **so**." in text and "Seen" not in text


def test_what_was_staged_while_its_job_found_the_thread_locked_is_posted(
    bench: Bench, github: Github, poster: Posters
) -> None:
    """The run that holds the lock looks again after it has released it, so nothing waits for the sweeper."""
    first, second = poster(github.env(), name="a"), poster(github.env(), name="b")
    for held in (first, second):
        held.hold("poster-recorded")
    key = bench.ask(a_comment("IC_1"))
    eventually(lambda: any((one.hooks / "poster-recorded.reached").exists() for one in (first, second)))
    later = bench.ask(a_comment("IC_2"))
    eventually(lambda: not bench.posts.has_job("Octo/Hello#1"))
    bench.answer(later)
    eventually(lambda: not bench.posts.has_job("Octo/Hello#1"))
    time.sleep(0.3)  # both jobs have found the thread locked
    assert bench.get(later).state is DemandState.ANSWERED
    for held in (first, second):
        held.let_go("poster-recorded")
    bench.posted(later)
    bench.idle()
    assert bench.note(key).shown


def test_sigterm_lets_the_note_be_finished_and_another_poster_go_on(
    bench: Bench, github: Github, poster: Posters
) -> None:
    github.fault("delay", seconds=0.7)
    first, second = bench.ask(a_comment("IC_1")), bench.ask(a_comment("IC_2"))
    bench.answer(first)
    bench.answer(second)
    started = poster(github.env())
    eventually(lambda: any(one["method"] == "POST" for one in github.requests()))
    bench.demands.redis.delete("rq:queue:posts")
    assert started.stop() == 0
    assert bench.get(first).state is DemandState.POSTED
    assert bench.get(second).state is DemandState.ANSWERED
    poster(github.env(), name="b")
    began = time.monotonic()
    bench.posted(second)
    assert time.monotonic() - began < 3, "no sweep was needed"


def test_sigterm_right_after_the_start_ends_it(poster: Posters) -> None:
    """rq handles signals only a moment after its start. An earlier signal must not be lost."""
    for n in range(3):
        started = poster(name=str(n))
        assert started.stop(20) == 0
