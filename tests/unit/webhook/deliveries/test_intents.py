"""The intent of each delivery: each stored payload, each row of the event table, and damaged payloads."""

import copy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessiond_webhook.deliveries import intents
from sessiond_webhook.deliveries.authorization import People
from sessiond_webhook.deliveries.intents import (
    Deleted,
    Demanded,
    Edited,
    Ignored,
    Ping,
    PullClosed,
    RefusedDemand,
    Rules,
    TaskWanted,
    Woken,
)
from sessiond_webhook.deliveries.mentions import Kind, Trigger
from sessiond_webhook.deliveries.payload import BadPayload
from sessiond_webhook.demands.comment import CommentSource, Person
from support.webhook import payloads

OWN = Person(4711, "Bot", "helper[bot]")
RULES = Rules(Trigger(Kind.MENTION, "helper[bot]"), People(OWN), "bug")
ALL = replace(RULES, trigger=Trigger(Kind.ALL))
AUTHOR = Person(payloads.AUTHOR, "User", "Codertocat")
REPO = "codertocat/hello-world"

# ---- the table -----------------------------------------------------------------------------------

KEPT = {
    "issue_comment.created": Demanded, "issue_comment.edited": Edited, "issue_comment.deleted": Deleted,
    "pull_request_review_comment.created": Demanded, "pull_request_review_comment.edited": Edited,
    "pull_request_review_comment.deleted": Deleted, "pull_request_review.submitted": Ignored,
    "pull_request.closed": PullClosed, "issues.assigned": Ignored, "issues.labeled": TaskWanted, "ping": Ping,
}  # fmt: skip


@pytest.mark.parametrize("name", payloads.NAMES)
def test_every_stored_payload_has_its_intent(name: str) -> None:
    assert type(intents.read(payloads.EVENTS[name], payloads.load(name), ALL)) is KEPT[name]


def test_a_comment_has_everything_that_an_answer_needs() -> None:
    intent = intents.read("issue_comment", payloads.comment("IC_9"), RULES)
    assert isinstance(intent, Demanded)
    found = intent.comment
    assert (found.key, found.source, found.session, found.repo) == (
        "IC_9",
        CommentSource.ISSUE_COMMENT,
        REPO,
        "Codertocat/Hello-World",
    )
    assert (found.number, found.is_pull, found.id, found.author) == (1, True, 492700400, AUTHOR)
    assert (found.association, found.title, found.labels) == ("OWNER", "Spelling error in the README file", ("bug",))
    assert (found.created_at, found.updated_at) == ("2019-05-15T15:20:21Z", "2019-05-15T15:20:21Z")
    assert (found.installation, found.root, found.line) == (1, None, None)
    on_issue = intents.read("issue_comment", payloads.comment(pull=False), RULES)
    assert isinstance(on_issue, Demanded) and not on_issue.comment.is_pull


def test_a_review_comment_has_its_line_and_its_thread() -> None:
    first = intents.read("pull_request_review_comment", payloads.review_comment(), RULES)
    assert isinstance(first, Demanded)
    found = first.comment
    assert (found.path, found.line, found.root, found.id) == ("README.md", 265, 284312630, 284312630)
    assert found.diff_hunk and found.commit and found.thread == "Codertocat/Hello-World#2/284312630"
    reply = intents.read(
        "pull_request_review_comment", payloads.review_comment(comment__in_reply_to_id=7, comment__line=12), RULES
    )
    assert isinstance(reply, Demanded) and (reply.comment.root, reply.comment.line) == (7, 12)


@pytest.mark.parametrize(
    ("body", "state", "intent"),
    [
        (None, "commented", Ignored("no-body")),
        ("  ", "commented", Ignored("no-body")),
        ("nice", "commented", Ignored("no-trigger")),
        (None, "approved", Woken(REPO, 2)),
        ("nice", "approved", Woken(REPO, 2)),
        (None, "changes_requested", Woken(REPO, 2)),
        (None, "CHANGES_REQUESTED", Woken(REPO, 2)),
    ],
)
def test_each_review_has_its_intent(body: str | None, state: str, intent: intents.Intent) -> None:
    assert intents.read("pull_request_review", payloads.review(body=body, state=state), RULES) == intent


def test_a_review_with_a_question_is_a_demand_whatever_its_state() -> None:
    for state in ("commented", "approved", "changes_requested"):
        found = intents.read("pull_request_review", payloads.review(body="@helper explain", state=state), RULES)
        assert isinstance(found, Demanded) and found.comment.review_state == state
        assert found.comment.source is CommentSource.REVIEW and found.comment.updated_at == "2019-05-15T15:20:38Z"
    edited = payloads.review(body="@helper no", action="edited")
    assert isinstance(intents.read("pull_request_review", edited, RULES), Edited)


def test_a_late_comment_on_a_closed_pull_request_is_refused_but_on_a_closed_issue_it_is_not() -> None:
    late = intents.read("issue_comment", payloads.comment(issue__state="closed"), RULES)
    assert isinstance(late, RefusedDemand) and late.reason == "pull-request-closed"
    late = intents.read("pull_request_review_comment", payloads.review_comment(pull_request__state="closed"), RULES)
    assert isinstance(late, RefusedDemand)
    on_issue = intents.read("issue_comment", payloads.comment(pull=False, issue__state="closed"), RULES)
    assert isinstance(on_issue, Demanded)
    decided = payloads.review(state="approved", pull_request__state="closed")
    assert intents.read("pull_request_review", decided, RULES) == Ignored("closed")


def test_an_edit_keeps_the_author_and_a_deletion_needs_none() -> None:
    editor = {"login": "mona", "id": 1, "type": "User"}
    edited = intents.read("issue_comment", payloads.comment(action="edited", body="else", sender=editor), RULES)
    assert isinstance(edited, Edited) and edited.comment.author == AUTHOR and edited.comment.body == "else"
    gone = payloads.comment("IC_4", action="deleted", comment__user=None, comment__author_association="NONE")
    assert intents.read("issue_comment", gone, RULES) == Deleted("IC_4", REPO)


def test_a_closed_pull_request_withdraws_its_demands() -> None:
    closed = payloads.load("pull_request.closed")
    assert intents.read("pull_request", closed, RULES) == PullClosed(REPO, 2, "2019-05-15T15:21:18Z")


def test_labels_and_assignments_become_tasks() -> None:
    us = {"login": "helper[bot]", "id": 4711, "type": "Bot"}
    assigned = payloads.load("issues.assigned")
    assert intents.read("issues", assigned, RULES) == Ignored("not-us")
    task = intents.read("issues", payloads.change(assigned, assignee=us), RULES)
    assert isinstance(task, TaskWanted)
    assert (task.key, task.session, task.number, task.asked_by) == ("MDU6SXNzdWU0NDQ1MDAwNDE=", REPO, 1, AUTHOR)
    assert task.title == "Spelling error in the README file" and task.body and task.url and task.installation == 1
    labelled = payloads.load("issues.labeled")
    assert isinstance(intents.read("issues", payloads.change(labelled, label__name="BUG"), RULES), TaskWanted)
    assert intents.read("issues", payloads.change(labelled, label__name="docs"), RULES) == Ignored("other-label")
    assert intents.read("issues", labelled, replace(RULES, task_label="")) == Ignored("other-label")
    assert intents.read("issues", payloads.change(labelled, issue__state="closed"), RULES) == Ignored("closed")


def test_a_label_on_the_new_issue_of_a_stranger_is_not_a_task() -> None:
    by_opener = payloads.change(payloads.load("issues.labeled"), issue__author_association="NONE")
    assert intents.read("issues", by_opener, RULES) == Ignored("not-allowed")
    by_member = payloads.change(by_opener, sender__id=5)
    assert isinstance(intents.read("issues", by_member, RULES), TaskWanted)
    by_bot = payloads.change(by_opener, sender__id=5, sender__type="Bot")
    assert intents.read("issues", by_bot, RULES) == Ignored("bot")
    by_us = payloads.change(by_opener, sender__id=4711, sender__type="Bot")
    assert intents.read("issues", by_us, RULES) == Ignored("own")


@pytest.mark.parametrize(
    ("event", "payload", "reason"),
    [
        ("star", {"action": "created"}, "event"),
        ("push", [], "event"),
        ("unheard_of", None, "event"),
        ("issue_comment", {"action": "pinned"}, "action"),
        ("issue_comment", payloads.comment(comment__user=None), "no-author"),
        ("issue_comment", payloads.comment(body=""), "no-body"),
        ("issue_comment", payloads.comment(body="hello"), "no-trigger"),
    ],
)
def test_each_ignored_delivery_has_its_reason(event: str, payload: Any, reason: str) -> None:
    assert intents.read(event, payload, RULES) == Ignored(reason)
    assert reason in intents.REASONS


# ---- damaged payloads ----------------------------------------------------------------------------

VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5), st.just([]), st.just({}),
    st.just([None]), st.just("9999-99-99T99:99:99Z"), st.just("0001-01-01T00:00:00+14:00"),
)  # fmt: skip
_GONE = object()


def paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [here] if here else []
    if isinstance(value, dict):
        for name, inner in value.items():
            found += paths(inner, (*here, name))
    return found


PATHS = {name: paths(payloads.load(name)) for name in payloads.NAMES}


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_a_damaged_payload_raises_nothing_but_bad_payload(data: Any) -> None:
    name = data.draw(st.sampled_from(payloads.NAMES))
    payload = copy.deepcopy(payloads.load(name))
    top = [
        path for path in PATHS[name] if path[0] in ("comment", "review", "issue", "action", "label") or len(path) < 3
    ]
    for _ in range(data.draw(st.integers(1, 3))):
        *way, last = data.draw(st.sampled_from(top))
        place: Any = payload
        for step in way:
            place = place.get(step) if isinstance(place, dict) else None
        if isinstance(place, dict):
            value = data.draw(st.one_of(VALUES, st.just(_GONE)))
            place.pop(last, None) if value is _GONE else place.__setitem__(last, value)
    try:
        intent = intents.read(payloads.EVENTS[name], payload, ALL)
    except BadPayload as error:
        assert "\n" not in str(error) and error.path
    else:
        assert not isinstance(intent, Ignored) or intent.reason in intents.REASONS


@given(st.recursive(VALUES, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=8), inner), max_leaves=8))
def test_any_json_raises_nothing_but_bad_payload(payload: Any) -> None:
    for event in ("issue_comment", "pull_request_review", "issues", "push", ""):
        try:
            intents.read(event, payload, RULES)
        except BadPayload:
            assert event in ("issue_comment", "pull_request_review", "issues")
