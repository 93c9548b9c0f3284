"""Reads the intent of a delivery from the event's name and the payload. Pure.

docs/reference/github-events.md has the table of events.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from sessiond_webhook.deliveries.authorization import People
from sessiond_webhook.deliveries.mentions import Trigger
from sessiond_webhook.deliveries.payload import BadPayload, Members
from sessiond_webhook.demands.comment import Comment, CommentSource, Person
from sessiond_webhook.demands.machine import CLOSED


@dataclass(frozen=True, slots=True)
class Demanded:
    """A comment asks for an answer."""

    comment: Comment


@dataclass(frozen=True, slots=True)
class RefusedDemand:
    """A comment asks for an answer but gets none. The note gives the `reason`."""

    comment: Comment
    reason: str


@dataclass(frozen=True, slots=True)
class Edited:
    """A comment was edited. The demand still belongs to its author, even if somebody else edited it."""

    comment: Comment


@dataclass(frozen=True, slots=True)
class Deleted:
    """A comment was deleted."""

    key: str
    session: str


@dataclass(frozen=True, slots=True)
class PullClosed:
    """A pull request was closed or merged. `at` is the time, RFC 3339."""

    session: str
    number: int
    at: str


@dataclass(frozen=True, slots=True)
class TaskWanted:
    """An issue becomes a task of the worker. `key` is the issue's node id, so two deliveries make one task."""

    key: str
    session: str
    repo: str
    """`owner/repo` as GitHub spells it."""
    number: int
    title: str
    body: str
    url: str
    asked_by: Person
    installation: int | None = None


@dataclass(frozen=True, slots=True)
class Woken:
    """A review decided about a pull request, so a task that waits for it may go on."""

    session: str
    number: int


@dataclass(frozen=True, slots=True)
class Ping:
    """GitHub tests the webhook."""


@dataclass(frozen=True, slots=True)
class Ignored:
    """The delivery needs no action. `reason` is one of `REASONS`."""

    reason: str


Intent = Demanded | RefusedDemand | Edited | Deleted | PullClosed | TaskWanted | Woken | Ping | Ignored

REASONS: Final = frozenset({
    "event", "action", "own", "bot", "not-allowed", "no-author", "no-trigger", "no-body", "closed", "pull-request",
    "not-us", "other-label",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings that decide about events. With an empty `task_label`, no label makes a task."""

    trigger: Trigger
    people: People
    task_label: str = ""


def read(event: str, payload: object, rules: Rules) -> Intent:
    """Return the intent of a delivery of this event (X-GitHub-Event).

    Raises:
        BadPayload: the event is supported and its payload is not valid.
    """
    if event == "ping":
        return Ping()
    actions = _TABLE.get(event)
    if actions is None:
        return Ignored("event")
    if not isinstance(payload, dict):
        raise BadPayload("the payload", "must be an object")
    members = Members(payload)
    read_action = actions.get(members.text("action"))
    return read_action(members, rules) if read_action is not None else Ignored("action")


# ---- comments ------------------------------------------------------------------------------------

_MakeComment = Callable[[Members, Person], Comment]


def _issue_comment(payload: Members, author: Person) -> Comment:
    return _comment(payload, author, CommentSource.ISSUE_COMMENT, payload.object("comment"), payload.object("issue"))


def _review_comment(payload: Members, author: Person) -> Comment:
    found, pull = payload.object("comment"), payload.object("pull_request")
    return _comment(payload, author, CommentSource.REVIEW_COMMENT, found, pull)


def _review(payload: Members, author: Person) -> Comment:
    return _comment(payload, author, CommentSource.REVIEW, payload.object("review"), payload.object("pull_request"))


def _comment(payload: Members, author: Person, source: CommentSource, found: Members, about: Members) -> Comment:
    """Return the comment or review `found` on the issue or pull request `about`."""
    repo, number = payload.repo(), found.number("id")
    created = found.time("submitted_at" if source is CommentSource.REVIEW else "created_at")
    on_file = source is CommentSource.REVIEW_COMMENT
    return Comment(
        key=found.node_id(),
        source=source,
        session=repo.lower(),
        repo=repo,
        number=about.number("number"),
        is_pull=source is not CommentSource.ISSUE_COMMENT or about.has("pull_request"),
        id=number,
        author=author,
        association=found.text("author_association", "NONE"),
        body=found.text("body", ""),
        url=found.text("html_url", ""),
        title=about.text("title", ""),
        created_at=created,
        updated_at=found.time("updated_at", created),
        closed=about.text("state", "open") == "closed",
        labels=about.labels(),
        review_state=found.text("state").lower() if source is CommentSource.REVIEW else None,
        path=found.optional_text("path") if on_file else None,
        # If the pull request no longer has the line, only `original_line` is set.
        line=found.optional_number("line") or found.optional_number("original_line") if on_file else None,
        diff_hunk=found.optional_text("diff_hunk") if on_file else None,
        commit=found.optional_text("commit_id"),
        root=(found.optional_number("in_reply_to_id") or number) if on_file else None,
        installation=_installation(payload),
    )


def _installation(payload: Members) -> int | None:
    return payload.object("installation").number("id") if payload.has("installation") else None


def _allowed_comment(payload: Members, rules: Rules, member: str, make: _MakeComment) -> Comment | Ignored:
    """Return the comment, if its author may ask at all."""
    author = payload.object(member).person("user")
    if author is None:
        return Ignored("no-author")
    comment = make(payload, author)
    refusal = rules.people.refusal(author, comment.association)
    return Ignored(refusal) if refusal is not None else comment


def _created(member: str, make: _MakeComment) -> "_ReadAction":
    def read_action(payload: Members, rules: Rules) -> Intent:
        comment = _allowed_comment(payload, rules, member, make)
        return comment if isinstance(comment, Ignored) else _demanded(comment, rules)

    return read_action


def _demanded(comment: Comment, rules: Rules) -> Intent:
    if not comment.body.strip():
        return Ignored("no-body")
    if not rules.trigger.fits(comment):
        return Ignored("no-trigger")
    return RefusedDemand(comment, CLOSED) if comment.is_pull and comment.closed else Demanded(comment)


def _edited(member: str, make: _MakeComment) -> "_ReadAction":
    def read_action(payload: Members, rules: Rules) -> Intent:
        comment = _allowed_comment(payload, rules, member, make)
        return comment if isinstance(comment, Ignored) else Edited(comment)

    return read_action


def _deleted(payload: Members, rules: Rules) -> Intent:
    """Return the deletion. The author is not checked: a person who left the repository may withdraw a question."""
    found = payload.object("comment")
    author = found.person("user")
    if author is not None and rules.people.is_own(author):
        return Ignored("own")
    return Deleted(found.node_id(), payload.repo().lower())


def _submitted(payload: Members, rules: Rules) -> Intent:
    comment = _allowed_comment(payload, rules, "review", _review)
    if isinstance(comment, Ignored):
        return comment
    intent = _demanded(comment, rules)
    if isinstance(intent, Ignored) and comment.review_state in ("approved", "changes_requested"):
        return Ignored("closed") if comment.closed else Woken(comment.session, comment.number)
    return intent


# ---- pull requests and issues --------------------------------------------------------------------


def _closed(payload: Members, rules: Rules) -> Intent:
    pull = payload.object("pull_request")
    at = pull.time("closed_at") if pull.has("closed_at") else pull.time("updated_at")
    return PullClosed(payload.repo().lower(), pull.number("number"), at)


def _assigned(payload: Members, rules: Rules) -> Intent:
    assignee = payload.person("assignee")
    if assignee is None or not rules.people.is_own(assignee):
        return Ignored("not-us")
    return _task(payload, rules)


def _labelled(payload: Members, rules: Rules) -> Intent:
    label = payload.object("label").text("name") if payload.has("label") else ""
    if not rules.task_label or label.casefold() != rules.task_label.casefold():
        return Ignored("other-label")
    return _task(payload, rules)


def _task(payload: Members, rules: Rules) -> Intent:
    """Return the task for an issue. An account that assigns or labels has triage rights, with one exception.

    An issue template adds its labels in the name of the person who opened the issue.
    """
    issue = payload.object("issue")
    sender, opener = payload.person("sender"), issue.person("user")
    if sender is None:
        return Ignored("no-author")
    is_opener = opener is not None and sender.same(opener)
    refusal = rules.people.refusal(sender, issue.text("author_association", "NONE") if is_opener else None)
    if refusal is not None:
        return Ignored(refusal)
    if issue.has("pull_request"):
        return Ignored("pull-request")
    if issue.text("state", "open") == "closed":
        return Ignored("closed")
    repo = payload.repo()
    return TaskWanted(
        key=issue.node_id(),
        session=repo.lower(),
        repo=repo,
        number=issue.number("number"),
        title=issue.text("title", ""),
        body=issue.text("body", ""),
        url=issue.text("html_url", ""),
        asked_by=sender,
        installation=_installation(payload),
    )


_ReadAction = Callable[[Members, Rules], Intent]

_TABLE: Final[Mapping[str, Mapping[str, _ReadAction]]] = {
    "issue_comment": {
        "created": _created("comment", _issue_comment),
        "edited": _edited("comment", _issue_comment),
        "deleted": _deleted,
    },
    "pull_request_review_comment": {
        "created": _created("comment", _review_comment),
        "edited": _edited("comment", _review_comment),
        "deleted": _deleted,
    },
    "pull_request_review": {"submitted": _submitted, "edited": _edited("review", _review)},
    "pull_request": {"closed": _closed},
    "issues": {"assigned": _assigned, "labeled": _labelled},
}
