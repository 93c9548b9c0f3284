"""The states of a demand: one table, and functions from record to record. Pure.

    open --acquire--> answering --answer--> answered --post--> posted(url)
      |                   +--put back--> open   +--fail--> failed(reason)
      +--refuse, fail--> refused(reason) | failed(reason)         (also from answering)

There are two rules. First, a demand ends with exactly one posted answer or one reason. Second, only the run that holds
the demand (`holder`) may answer it. So a run whose lease has ended cannot change anything later.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from sessiond_common import clock
from sessiond_webhook.demands.comment import Comment


class DemandState(StrEnum):
    """The state of a demand."""

    OPEN = "open"
    ANSWERING = "answering"
    ANSWERED = "answered"
    POSTED = "posted"
    REFUSED = "refused"
    FAILED = "failed"


class Move(StrEnum):
    """What can happen to a demand."""

    ACQUIRE = "acquire"
    HOLD = "hold"
    PUT_BACK = "put back"
    ANSWER = "answer"
    POST = "post"
    REFUSE = "refuse"
    FAIL = "fail"
    EDIT = "edit"


TABLE: Final[Mapping[tuple[DemandState, Move], DemandState]] = {
    (DemandState.OPEN, Move.ACQUIRE): DemandState.ANSWERING,
    (DemandState.OPEN, Move.REFUSE): DemandState.REFUSED,
    (DemandState.OPEN, Move.FAIL): DemandState.FAILED,
    (DemandState.OPEN, Move.EDIT): DemandState.OPEN,
    (DemandState.ANSWERING, Move.ACQUIRE): DemandState.ANSWERING,  # the lease of the earlier run has ended
    (DemandState.ANSWERING, Move.HOLD): DemandState.ANSWERING,
    (DemandState.ANSWERING, Move.PUT_BACK): DemandState.OPEN,
    (DemandState.ANSWERING, Move.ANSWER): DemandState.ANSWERED,
    (DemandState.ANSWERING, Move.REFUSE): DemandState.REFUSED,
    (DemandState.ANSWERING, Move.FAIL): DemandState.FAILED,
    (DemandState.ANSWERING, Move.EDIT): DemandState.ANSWERING,
    (DemandState.ANSWERED, Move.POST): DemandState.POSTED,
    (DemandState.ANSWERED, Move.FAIL): DemandState.FAILED,  # the answer cannot or must not be posted
}

UNANSWERED: Final = frozenset({DemandState.OPEN, DemandState.ANSWERING})
ENDED: Final = frozenset({DemandState.POSTED, DemandState.REFUSED, DemandState.FAILED})
HELD: Final = frozenset({Move.HOLD, Move.PUT_BACK, Move.ANSWER})
"""Moves that only the run that holds the demand may do."""

CLOSED: Final = "pull-request-closed"
"""The reason for refusing a comment on a closed pull request."""


class MoveRefused(Exception):
    """The state of the demand does not allow this move. Nothing has changed."""

    def __init__(self, key: str, state: DemandState, move: Move) -> None:
        super().__init__(f"cannot {move.value} {key}: it is {state.value}")
        self.key, self.state, self.move = key, state, move


class NotHolder(Exception):
    """Another run holds the demand now."""


class CommentChanged(Exception):
    """The comment was edited after this revision was read, so the answer belongs to an old question."""


@dataclass(frozen=True, slots=True)
class Note:
    """The bot's one comment for a demand. The poster edits it in place."""

    id: int | None = None
    """None while the creation has begun and its outcome is unknown."""
    url: str | None = None
    shown: str | None = None
    """The SHA-256 of the body on GitHub."""
    begun: float | None = None
    """When the creation began, while `id` is None: epoch seconds of Redis's clock."""


@dataclass(frozen=True, slots=True)
class Demand:
    """The record of a demand. `order` sorts the demands of a session, `revision` counts edits.

    `at` maps each state to the time when it began.
    """

    comment: Comment
    order: int
    state: DemandState = DemandState.OPEN
    revision: int = 1
    holder: str | None = None
    fence: int | None = None
    runs: int = 0
    """How many runs have acquired it."""
    ticket: str | None = None
    place: int | None = None
    """The place in the queue when the ticket was taken."""
    job: str | None = None
    """The last rq job that was enqueued to wake a handler."""
    text: str | None = None
    """The answer."""
    task: str | None = None
    """The task that the answer promises."""
    reason: str | None = None
    """Why there is no answer: a stable word, for refused and failed."""
    tell: bool = True
    """Whether the note gives the reason. For a deleted comment, only if a note exists already."""
    note: Note | None = None
    at: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return self.comment.key

    @property
    def session(self) -> str:
        return self.comment.session


def moved(demand: Demand, move: Move, now: str, *, holder: str | None = None) -> Demand:
    """Return the record after `move`. `holder` is the run that asks.

    Raises:
        MoveRefused: the state does not allow the move.
        NotHolder: the move needs the run that holds the demand.
    """
    after = TABLE.get((demand.state, move))
    if after is None:
        raise MoveRefused(demand.key, demand.state, move)
    if move in HELD and holder != demand.holder:
        raise NotHolder(demand.key)
    if after is demand.state:
        return demand
    return replace(demand, state=after, at={**demand.at, after.value: now})


def acquired(demand: Demand, holder: str, now: str) -> Demand:
    """Return the record after a run has acquired the demand."""
    after = moved(demand, Move.ACQUIRE, now)
    return replace(after, holder=holder, fence=None, runs=demand.runs + 1)


def held(demand: Demand, holder: str, ticket: str, fence: int, now: str) -> Demand:
    """Return the record of a run that now holds the session's lease, with this ticket and fence."""
    return replace(moved(demand, Move.HOLD, now, holder=holder), ticket=ticket, fence=fence)


def put_back(demand: Demand, holder: str, now: str) -> Demand:
    """Return the record after the run has given the demand back, so that another run can acquire it."""
    return replace(moved(demand, Move.PUT_BACK, now, holder=holder), holder=None, fence=None)


def answered(demand: Demand, holder: str, revision: int, text: str, now: str) -> Demand:
    """Return the record with this answer.

    Raises:
        MoveRefused, NotHolder: as `moved`.
        CommentChanged: the comment was edited after `revision`.
        ValueError: the text is blank.
    """
    after = moved(demand, Move.ANSWER, now, holder=holder)
    if revision != demand.revision:
        raise CommentChanged(demand.key)
    if not text.strip():
        raise ValueError("an answer must not be empty")
    return replace(after, text=text)


def promising(demand: Demand, task: str) -> Demand:
    """Return the record of an answer that promises this task."""
    return replace(demand, task=task)


def refused(demand: Demand, reason: str, now: str, *, tell: bool) -> Demand:
    """Return the record of a demand that no longer needs an answer, for example because it was withdrawn."""
    after = moved(demand, Move.REFUSE, now)
    return replace(after, reason=reason, tell=tell or demand.note is not None)


def failed(demand: Demand, reason: str, now: str, *, holder: str | None = None) -> Demand:
    """Return the record of a demand that could not be answered.

    Raises:
        NotHolder: `holder` is given, and another run holds the demand.
    """
    if holder is not None and demand.state is DemandState.ANSWERING and holder != demand.holder:
        raise NotHolder(demand.key)
    return replace(moved(demand, Move.FAIL, now), reason=reason)


def posted(demand: Demand, now: str) -> Demand:
    """Return the record after the answer was posted."""
    return moved(demand, Move.POST, now)


def seconds_between(at: Mapping[str, str], first: DemandState, second: DemandState) -> float:
    """Return the seconds between the beginnings of two states."""
    return clock.seconds_between(at[first.value], at[second.value])


def edited(demand: Demand, comment: Comment, now: str) -> Demand:
    """Return the record with the edited comment. The demand keeps its place. An older version is ignored."""
    after = moved(demand, Move.EDIT, now)
    if comment.updated_at < demand.comment.updated_at or comment.body == demand.comment.body:
        return demand
    kept = replace(demand.comment, body=comment.body, title=comment.title, updated_at=comment.updated_at)
    return replace(after, comment=kept, revision=demand.revision + 1)
