"""The poster on a real Redis and the loopback GitHub: the notes, their places and their order."""

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
from support.webhook.posting import DemandRecords, Poster, a_comment

Posters = Callable[..., Poster]
KINDS = [CommentSource.ISSUE_COMMENT, CommentSource.REVIEW_COMMENT, CommentSource.REVIEW]


@pytest.mark.parametrize("source", KINDS)
def test_a_seen_note_is_later_replaced_by_the_answer(
    records: DemandRecords, github: Github, poster: Posters, source: CommentSource
) -> None:
    root = github.comment(2, kind="review") if source is CommentSource.REVIEW_COMMENT else None
    poster(github.env())
    key = records.ask(a_comment(number=2, source=source, root=root, id=root or 501))
    records.shown(key)
    records.answer(key, "Because of @mona.")
    (demand,) = records.posted(key)
    first, second = github.log()
    assert (first["did"], second["did"]) == ("created", "edited")
    assert first["id"] == second["id"]
    assert first["thread"] == second["thread"] == (f"Octo/Hello#2/{root}" if root else "Octo/Hello#2")
    assert first["kind"] == ("review" if root else "issue")
    assert first["body"].startswith("Seen.")
    assert second["body"] == f"Because of @\u200bmona.\n\n{notes.marker(key)}"
    assert demand.note is not None and demand.note.url == second["url"]
    assert records.get(key).at["posted"]
    records.idle()


def test_a_seen_note_shows_the_place_in_the_queue(records: DemandRecords, github: Github, poster: Posters) -> None:
    poster(github.env())
    key = records.ask(a_comment())
    records.shown(key)
    records.move(key, lambda known: replace(known, place=3))
    eventually(lambda: "place 3" in github.log()[-1]["body"])
    records.idle()
    assert [one["did"] for one in github.log()] == ["created", "edited"]


def test_an_answer_that_comes_first_is_posted_without_seen(
    records: DemandRecords, github: Github, poster: Posters
) -> None:
    key = records.ask(a_comment())
    records.answer(key)
    poster(github.env())
    records.posted(key)
    assert [one["body"].split("\n")[0] for one in github.log()] == ["It is a test."]


@pytest.mark.parametrize("note_first", [True, False])
def test_the_reason_of_an_unanswered_comment_is_posted(
    records: DemandRecords, github: Github, poster: Posters, note_first: bool
) -> None:
    poster(github.env())
    key = records.ask(a_comment())
    if note_first:
        records.shown(key)
    records.move(key, lambda known: machine.failed(known, "lost-thrice: and details for logs", now_text()))
    records.idle()
    written = github.log()
    assert len({one["id"] for one in written}) == 1
    assert written[-1]["body"].split("\n")[0] == notes.REASONS["lost-thrice"]
    assert records.get(key).state is DemandState.FAILED


def test_a_comment_that_was_deleted_before_its_note_gets_no_note(
    records: DemandRecords, github: Github, poster: Posters
) -> None:
    key = records.ask(a_comment())
    assert records.demands.delete("delivery-2", key).outcome == "withdrawn"
    poster(github.env())
    records.idle()
    assert github.log() == []


def test_the_answers_of_a_thread_are_in_the_order_of_their_comments(
    records: DemandRecords, github: Github, poster: Posters
) -> None:
    """The second comment's answer replaces its own pending note. It must not overtake the first comment's answer."""
    poster(github.env(), name="a")
    poster(github.env(), name="b")
    keys = [records.ask(a_comment(f"IC_{9 - n}")) for n in range(4)]
    records.shown(keys[0])
    for mode, more in (("error", {"status": 502}), ("secondary", {"seconds": 1}), ("cut", {}), ("drop", {})):
        github.fault(mode, "(POST|PATCH) .*comments", **more)
    for n, key in enumerate(keys):
        records.answer(key, f"answer {n}")
    records.posted(*keys, seconds=40, sweep=True)
    answers = [one["body"].split("\n")[0] for one in github.log() if one["body"].startswith("answer")]
    assert list(dict.fromkeys(answers)) == [f"answer {n}" for n in range(4)]
    assert len({one["id"] for one in github.log()}) == 4


def test_an_answer_does_not_overtake_because_its_seen_note_still_waits(records: DemandRecords, github: Github) -> None:
    first, second = records.ask(a_comment("IC_2")), records.ask(a_comment("IC_1"))
    records.demands.redis.zrem(posts_key("Octo/Hello#1"), first)  # the note of the first comment is up to date
    records.answer(second)
    records.answer(first)
    assert texts(records.demands.redis.zrange(posts_key("Octo/Hello#1"), 0, -1)) == [first, second]


def test_two_posters_at_once_post_each_note_once(records: DemandRecords, github: Github, poster: Posters) -> None:
    for name in "abc":
        poster(github.env(), name=name)
    for number in range(10, 14):
        github.thread(number)
    keys = [records.ask(a_comment(f"IC_{n}", number=10 + n % 4)) for n in range(16)]
    for key in keys:
        records.answer(key, f"answer to {key}")
        records.posts.wake(records.get(key).comment.thread)
    records.posted(*keys, seconds=60, sweep=True)
    created = [one for one in github.log() if one["did"] == "created"]
    assert len(created) == 16


FAULTS: dict[str, dict[str, Any]] = {
    "primary": {"mode": "primary", "seconds": 2}, "primary, 429": {"mode": "primary", "seconds": 2, "status": 429},
    "secondary": {"mode": "secondary", "seconds": 2},
    "secondary, 429": {"mode": "secondary", "seconds": 2, "status": 429},
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_all_posters_wait_until_the_rate_limit_is_reset(
    records: DemandRecords, github: Github, poster: Posters, fault: dict[str, Any]
) -> None:
    github.fault(**fault)
    keys = [records.ask(a_comment("IC_1", 1)), records.ask(a_comment("IC_2", 2))]
    for key in keys:
        records.answer(key)
    poster(github.env())
    records.posted(*keys, seconds=20)
    asked = github.requests()
    assert asked[0]["status"] == fault.get("status", 403)
    assert asked[1]["at"] - asked[0]["at"] >= 2.0, "no request may come before the reset time"
    assert [one["status"] for one in asked[1:]] == [201, 201]


def test_a_rate_limit_is_respected_although_the_schedule_is_lost(
    records: DemandRecords, github: Github, poster: Posters
) -> None:
    github.fault("secondary", seconds=2)
    key = records.ask(a_comment())
    poster(github.env())
    eventually(lambda: records.posts.wait("Octo/Hello#1").until > 0)
    for name in records.demands.redis.scan_iter("rq:*"):
        if b"worker" not in name:
            records.demands.redis.delete(name)
    assert sweep_posts(records.demands) == 0, "it is not time yet"
    records.answer(key)
    records.posted(key, sweep=True)
    first, second = github.requests()
    assert second["at"] - first["at"] >= 2.0


def test_a_5xx_is_retried_with_growing_pauses(records: DemandRecords, github: Github, poster: Posters) -> None:
    poster(github.env())
    key = records.ask(a_comment())
    records.shown(key)
    records.idle()
    github.fault("error", "PATCH", times=3, status=500)
    records.answer(key)
    records.posted(key, seconds=30)
    assert [one["status"] for one in github.requests()][-4:] == [500, 500, 500, 200]


UNKNOWN: dict[str, dict[str, Any]] = {
    "done, the connection cut": {"mode": "cut"},
    "not done, the connection cut": {"mode": "drop"},
    "not done, 502": {"mode": "error", "status": 502},
    "done, after the client's deadline": {"mode": "delay", "seconds": 1.4},
}


@pytest.mark.parametrize("fault", UNKNOWN.values(), ids=UNKNOWN)
def test_after_an_unknown_outcome_there_is_one_comment(
    records: DemandRecords, github: Github, poster: Posters, fault: dict[str, Any]
) -> None:
    github.fault(**fault)
    github.fault("lag", seconds=0.3)
    key = records.ask(a_comment())
    poster(github.env())
    records.shown(key)
    records.answer(key)
    records.posted(key, seconds=30)
    assert len([one for one in github.log() if one["did"] == "created"]) == 1
    listed = [one for one in github.requests() if one["method"] == "GET" and "comments" in one["path"]]
    assert len(listed) == 1


def test_a_strangers_comment_with_the_marker_is_not_ours(
    records: DemandRecords, github: Github, poster: Posters
) -> None:
    github.fault("drop")
    comment = a_comment()
    stranger = github.comment(1, f"Fake\n\n{notes.marker(comment.key)}")
    key = records.ask(comment)
    records.answer(key)
    poster(github.env())
    (demand,) = records.posted(key, seconds=30)
    assert demand.note is not None and demand.note.id != stranger
    assert [(one["did"], one["author"]) for one in github.log()] == [("created", Github.BOT["id"])]


def test_our_text_with_anothers_marker_is_not_anothers_note(
    records: DemandRecords, github: Github, poster: Posters
) -> None:
    first, second = records.ask(a_comment("IC_1")), records.ask(a_comment("IC_2"))
    records.answer(first, f"Look:\n\n{notes.marker(second)}")
    records.answer(second)
    github.fault("drop", times=2)
    poster(github.env())
    records.posted(first, second, seconds=30)
    assert len({one["id"] for one in github.log()}) == 2


@pytest.mark.parametrize(("locked", "number", "status"), [(True, 1, 403), (False, 404, 404)])
def test_a_permanent_refusal_by_github_fails_the_demand(
    records: DemandRecords, github: Github, poster: Posters, locked: bool, number: int, status: int
) -> None:
    github.thread(1, locked=locked)
    key = records.ask(a_comment(number=number))
    records.answer(key)
    other = records.ask(a_comment("IC_2", number=2))
    records.answer(other)
    poster(github.env())
    (failed,) = records.until(DemandState.FAILED, key)
    assert failed.reason is not None and failed.reason.startswith(f"unpostable: {status} ")
    assert not failed.tell
    records.posted(other)
    records.idle()


def test_a_seen_note_that_cannot_be_posted_does_not_change_the_demand(
    records: DemandRecords, github: Github, poster: Posters
) -> None:
    github.thread(1, locked=True)
    poster(github.env())
    key = records.ask(a_comment())
    records.idle()
    assert records.get(key).state is DemandState.OPEN
    github.thread(1, locked=False)
    records.answer(key)
    records.posted(key)


def test_a_deleted_note_is_created_again(records: DemandRecords, github: Github, poster: Posters) -> None:
    poster(github.env())
    key = records.ask(a_comment())
    records.shown(key)
    github.order("delete", id=records.note(key).id)
    records.answer(key)
    records.posted(key)
    assert [one["did"] for one in github.log()] == ["created", "created"]


def test_a_change_during_a_post_is_posted_afterwards(records: DemandRecords, github: Github, poster: Posters) -> None:
    github.fault("delay", seconds=0.8)
    key = records.ask(a_comment())
    poster(github.env())
    eventually(lambda: any(one["method"] == "POST" for one in github.requests()))
    records.answer(key)
    records.posted(key)
    assert [one["did"] for one in github.log()] == ["created", "edited"]


@pytest.mark.parametrize("text", ["The key is {}.", "The key is\n{spaced}", "x {base64} y"])
def test_an_answer_with_a_secret_is_withheld_and_the_note_states_that(
    records: DemandRecords, github: Github, poster: Posters, text: str
) -> None:
    import base64

    secret = "sk-model-0123456789"
    hidden = text.format(secret, spaced=" ".join(secret), base64=base64.b64encode(f"a {secret}".encode()).decode())
    key = records.ask(a_comment())
    records.answer(key, hidden)
    started = poster({**github.env(), "ANTHROPIC_API_KEY": secret})
    records.until(DemandState.FAILED, key)
    records.idle()
    (one,) = github.log()
    assert one["body"].split("\n")[0] == notes.REASONS["secret-in-answer"]
    assert records.get(key).reason == "secret-in-answer"
    assert secret not in started.log() and Github.TOKEN not in started.log()


def test_without_a_token_answers_are_written_to_the_outbox(records: DemandRecords, poster: Posters) -> None:
    started = poster()
    assert re.search(r"^webhook.poster: no GITHUB_TOKEN .*answers go to .*outbox$", started.log(), re.MULTILINE)
    key = records.ask(a_comment(number=2, source=CommentSource.REVIEW_COMMENT, root=7))
    records.shown(key)
    records.answer(key, "It is **so**.")
    (demand,) = records.posted(key)
    assert demand.note is not None and demand.note.url is not None
    path = demand.note.url.removeprefix("file://")
    assert path.endswith("outbox/Octo/Hello/2/7/IC_1.md")
    with open(path) as file:
        text = file.read()
    assert "> What is this?" in text and "It is **so**." in text and "Seen" not in text


def test_a_post_whose_job_found_the_thread_locked_is_posted(
    records: DemandRecords, github: Github, poster: Posters
) -> None:
    """The run that holds the lock checks again after releasing it, so no note waits for the sweeper."""
    first, second = poster(github.env(), name="a"), poster(github.env(), name="b")
    for held in (first, second):
        held.hold("poster-recorded")
    key = records.ask(a_comment("IC_1"))
    eventually(lambda: any((one.hooks / "poster-recorded.reached").exists() for one in (first, second)))
    later = records.ask(a_comment("IC_2"))
    eventually(lambda: not records.posts.has_job("Octo/Hello#1"))
    records.answer(later)
    eventually(lambda: not records.posts.has_job("Octo/Hello#1"))
    time.sleep(0.3)  # both jobs have found the thread locked
    assert records.get(later).state is DemandState.ANSWERED
    for held in (first, second):
        held.release("poster-recorded")
    records.posted(later)
    records.idle()
    assert records.note(key).shown


def test_sigterm_lets_a_poster_finish_its_note_and_another_one_continues(
    records: DemandRecords, github: Github, poster: Posters
) -> None:
    github.fault("delay", seconds=0.7)
    first, second = records.ask(a_comment("IC_1")), records.ask(a_comment("IC_2"))
    records.answer(first)
    records.answer(second)
    started = poster(github.env())
    eventually(lambda: any(one["method"] == "POST" for one in github.requests()))
    records.demands.redis.delete("rq:queue:posts")
    assert started.stop() == 0
    assert records.get(first).state is DemandState.POSTED
    assert records.get(second).state is DemandState.ANSWERED
    poster(github.env(), name="b")
    began = time.monotonic()
    records.posted(second)
    assert time.monotonic() - began < 3, "no sweep was needed"


def test_sigterm_right_after_the_start_ends_it(poster: Posters) -> None:
    """rq handles signals only a moment after its start. An earlier signal must not be lost."""
    for n in range(3):
        started = poster(name=str(n))
        assert started.stop(20) == 0
