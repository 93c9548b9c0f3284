"""A demand's life, pure: one table of states, and functions from record to record.

    open --claim--> answering --answer--> answered --post--> posted(url)
      |                 +--put back--> open   +--fail--> failed(reason)
      +--refuse, fail--> refused(reason) | failed(reason)         (also from answering)

Two rules. First: a demand ends in exactly one posted answer or one stated reason. Second: only the run that
holds it (`holder`) may answer it, so that a run that was given up for dead changes nothing when it comes back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from sessiond_common import clock
from sessiond_webhook.demands.comment import Comment


class State(StrEnum):
    """Where a demand is."""

    OPEN = "open"
    ANSWERING = "answering"
    ANSWERED = "answered"
    POSTED = "posted"
    REFUSED = "refused"
    FAILED = "failed"


class Move(StrEnum):
    """What can happen to it."""

    CLAIM = "claim"
    HOLD = "hold"
    PUT_BACK = "put back"
    ANSWER = "answer"
    POST = "post"
    REFUSE = "refuse"
    FAIL = "fail"
    EDIT = "edit"


TABLE: Final[Mapping[tuple[State, Move], State]] = {
    (State.OPEN, Move.CLAIM): State.ANSWERING,
    (State.OPEN, Move.REFUSE): State.REFUSED,
    (State.OPEN, Move.FAIL): State.FAILED,
    (State.OPEN, Move.EDIT): State.OPEN,
    (State.ANSWERING, Move.CLAIM): State.ANSWERING,  # the run before is dead
    (State.ANSWERING, Move.HOLD): State.ANSWERING,
    (State.ANSWERING, Move.PUT_BACK): State.OPEN,
    (State.ANSWERING, Move.ANSWER): State.ANSWERED,
    (State.ANSWERING, Move.REFUSE): State.REFUSED,
    (State.ANSWERING, Move.FAIL): State.FAILED,
    (State.ANSWERING, Move.EDIT): State.ANSWERING,
    (State.ANSWERED, Move.POST): State.POSTED,
    (State.ANSWERED, Move.FAIL): State.FAILED,  # it cannot be posted, or must not be
}

UNANSWERED: Final = frozenset({State.OPEN, State.ANSWERING})
ENDED: Final = frozenset({State.POSTED, State.REFUSED, State.FAILED})
HELD: Final = frozenset({Move.HOLD, Move.PUT_BACK, Move.ANSWER})
"""Moves of the run that holds the demand."""


CLOSED: Final = "pull-request-closed"
"""Why a comment on a closed pull request is refused."""


class NotNow(Exception):
    """The demand is not in a state for this; nothing changed."""

    def __init__(self, key: str, state: State, move: Move) -> None:
        super().__init__(f"{move.value} of {key}, which is {state.value}")
        self.key, self.state, self.move = key, state, move


class NotHolder(Exception):
    """Another run holds the demand now."""


class Edited(Exception):
    """The comment was edited since this revision was read: the answer would be one to another question."""


@dataclass(frozen=True, slots=True)
class Note:
    """Our one comment in the thread, edited in place."""

    id: int | None = None
    """None while its creation was begun and its outcome is not known."""
    url: str | None = None
    shown: str | None = None
    """The SHA-256 of the body that stands there."""
    begun: float | None = None
    """When its creation was begun, while `id` is None: Redis's clock, epoch seconds."""


@dataclass(frozen=True, slots=True)
class Demand:
    """The record. `order` sorts a session's demands; `revision` counts edits; `at` says when each state began."""

    comment: Comment
    order: int
    state: State = State.OPEN
    revision: int = 1
    holder: str | None = None
    fence: int | None = None
    runs: int = 0
    """How many runs have claimed it."""
    ticket: str | None = None
    place: int | None = None
    """The place in the queue when the ticket was taken."""
    job: str | None = None
    """The rq job that was to wake a handler last."""
    text: str | None = None
    """The answer."""
    task: str | None = None
    """The task that the answer promises."""
    reason: str | None = None
    """Why there is no answer: a stable word, for refused and failed."""
    tell: bool = True
    """Whether the reason is told in the thread (a deleted comment's is not, unless we spoke there before)."""
    note: Note | None = None
    at: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return self.comment.key

    @property
    def session(self) -> str:
        return self.comment.session


def moved(demand: Demand, move: Move, now: str, *, holder: str | None = None) -> Demand:
    """The record after `move`; `holder` is who asks. Raises NotNow and NotHolder."""
    after = TABLE.get((demand.state, move))
    if after is None:
        raise NotNow(demand.key, demand.state, move)
    if move in HELD and holder != demand.holder:
        raise NotHolder(demand.key)
    if after is demand.state:
        return demand
    return replace(demand, state=after, at={**demand.at, after.value: now})


def claimed(demand: Demand, holder: str, now: str) -> Demand:
    """A run takes it up."""
    after = moved(demand, Move.CLAIM, now)
    return replace(after, holder=holder, fence=None, runs=demand.runs + 1)


def held(demand: Demand, holder: str, ticket: str, fence: int, now: str) -> Demand:
    """The run holds the session's lease with this fence, on this ticket."""
    return replace(moved(demand, Move.HOLD, now, holder=holder), ticket=ticket, fence=fence)


def put_back(demand: Demand, holder: str, now: str) -> Demand:
    """The run gives it up, so that another can take it up."""
    return replace(moved(demand, Move.PUT_BACK, now, holder=holder), holder=None, fence=None)


def answered(demand: Demand, holder: str, revision: int, text: str, now: str) -> Demand:
    """The answer is there. Raises Edited too; a blank text is no answer (ValueError)."""
    after = moved(demand, Move.ANSWER, now, holder=holder)
    if revision != demand.revision:
        raise Edited(demand.key)
    if not text.strip():
        raise ValueError("an answer must not be empty")
    return replace(after, text=text)


def promising(demand: Demand, task: str) -> Demand:
    """The answer promises this task."""
    return replace(demand, task=task)


def refused(demand: Demand, reason: str, now: str, *, tell: bool) -> Demand:
    """Nobody will answer it, and that is as it should be (withdrawn, closed)."""
    after = moved(demand, Move.REFUSE, now)
    return replace(after, reason=reason, tell=tell or demand.note is not None)


def failed(demand: Demand, reason: str, now: str, *, holder: str | None = None) -> Demand:
    """It could not be answered. With a `holder`, only the one that holds it may say so."""
    if holder is not None and demand.state is State.ANSWERING and holder != demand.holder:
        raise NotHolder(demand.key)
    return replace(moved(demand, Move.FAIL, now), reason=reason)


def posted(demand: Demand, now: str) -> Demand:
    """The answer stands in the thread."""
    return moved(demand, Move.POST, now)


def seconds_between(at: Mapping[str, str], first: State, second: State) -> float:
    """By the record's own times: from one state to another."""
    return clock.seconds_between(at[first.value], at[second.value])


def edited(demand: Demand, comment: Comment, now: str) -> Demand:
    """The comment as it reads now; the place is kept. An older version than the known one changes nothing."""
    after = moved(demand, Move.EDIT, now)
    if comment.updated_at < demand.comment.updated_at or comment.body == demand.comment.body:
        return demand
    kept = replace(demand.comment, body=comment.body, title=comment.title, updated_at=comment.updated_at)
    return replace(after, comment=kept, revision=demand.revision + 1)
