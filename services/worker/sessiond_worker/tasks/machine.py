"""A task: its record, its states, and the table of what may happen in which of them. Pure: no clock, no I/O.

    queued --start--> running --grant, send, close--> running --done | nothing | stick | fail--> its end
                         ^ |
                  start, | +--interrupt--> interrupted          stuck --wake--> queued
                  grant  +------------------------+             any end, stuck --retry--> queued

`interrupted` is a running task whose lease or run is gone for now; it comes back by itself. `stuck` waits for a
person; it is no end, so its key stays taken. What a task has used counts from its last start by `wake` or `retry`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from sessiond_worker.tasks.events import (
    Broke,
    Cancel,
    Close,
    Done,
    Event,
    Fail,
    Grant,
    Interrupt,
    Job,
    Nothing,
    Preempted,
    Queue,
    Released,
    Retry,
    Send,
    Start,
    Stick,
    Wake,
)
from sessiond_worker.tasks.model import (
    AT_WORK,
    ENDS,
    Budget,
    Interruptions,
    New,
    Source,
    State,
    Task,
    Turn,
    Used,
    dumps,
    loads,
    next_turn,
    used_up,
)

__all__ = [
    "AT_WORK",
    "ENDS",
    "NOTICES",
    "TABLE",
    "Broke",
    "Budget",
    "Cancel",
    "Close",
    "Done",
    "Event",
    "Fail",
    "Grant",
    "Interrupt",
    "Interruptions",
    "Job",
    "New",
    "Nothing",
    "Preempted",
    "Queue",
    "Refused",
    "Released",
    "Retry",
    "Send",
    "Source",
    "Start",
    "State",
    "Stick",
    "Task",
    "Turn",
    "Used",
    "Wake",
    "decide",
    "dumps",
    "loads",
    "next_turn",
    "used_up",
]

NOTICES: Final = 40
"""The newest so many are told: each may go with one more flurry."""
_ANYWHERE: Final = ("preempted", "released", "job")

TABLE: Final[Mapping[tuple[State, str], State]] = {
    (State.QUEUED, "start"): State.RUNNING,
    (State.QUEUED, "cancel"): State.CANCELLED,
    (State.QUEUED, "fail"): State.FAILED,
    # A run that died is followed by another one.
    (State.RUNNING, "start"): State.RUNNING,
    (State.RUNNING, "queue"): State.RUNNING,
    (State.RUNNING, "grant"): State.RUNNING,
    (State.RUNNING, "send"): State.RUNNING,
    (State.RUNNING, "close"): State.RUNNING,
    (State.RUNNING, "interrupt"): State.INTERRUPTED,
    (State.RUNNING, "broke"): State.RUNNING,
    (State.RUNNING, "done"): State.DONE,
    (State.RUNNING, "nothing"): State.NOTHING,
    (State.RUNNING, "stick"): State.STUCK,
    (State.RUNNING, "fail"): State.FAILED,
    (State.RUNNING, "cancel"): State.CANCELLED,
    (State.INTERRUPTED, "start"): State.RUNNING,
    (State.INTERRUPTED, "queue"): State.INTERRUPTED,
    (State.INTERRUPTED, "grant"): State.RUNNING,
    (State.INTERRUPTED, "broke"): State.INTERRUPTED,
    (State.INTERRUPTED, "interrupt"): State.INTERRUPTED,
    (State.INTERRUPTED, "fail"): State.FAILED,
    (State.INTERRUPTED, "cancel"): State.CANCELLED,
    (State.STUCK, "wake"): State.QUEUED,
    (State.STUCK, "retry"): State.QUEUED,
    (State.STUCK, "cancel"): State.CANCELLED,
    **{(end, "retry"): State.QUEUED for end in sorted(ENDS)},
    **{(state, name): state for state in State for name in _ANYWHERE},
}


class Refused(Exception):
    """This may not happen to a task in this state; `state` and `event` say what."""

    def __init__(self, state: State, event: str, why: str = "") -> None:
        super().__init__(f"a task that is {state.value} takes no {event}" + (f": {why}" if why else ""))
        self.state = state
        self.event = event


def decide(task: Task, event: Event, at: str) -> Task:
    """The task after `event`; `at` RFC 3339. Raises Refused, and nothing has changed then."""
    after = TABLE.get((task.state, event.name))
    if after is None:
        raise Refused(task.state, event.name)
    return replace(_change(task, event, at), state=after, updated_at=at)


def _change(task: Task, event: Event, at: str) -> Task:
    match event:
        case Start():
            budget = task.budget.filled(event.budget)
            return replace(task, runs=task.runs + 1, started_at=task.started_at or at, budget=budget)
        case Queue():
            return replace(task, ticket=event.ticket)
        case Grant():
            return replace(_told(task, event.notice), fence=event.fence, ledger=event.ledger or task.ledger)
        case Send():
            return _send(task, event.turn)
        case Close():
            return _close(task, event)
        case Preempted():
            return _preempted(task, event.fences)
        case Interrupt():
            count = replace(task.interruptions, count=task.interruptions.count + 1, last=event.by)
            return replace(_told(task, event.notice), interruptions=count, fence=None)
        case Done() | Nothing():
            return replace(task, outcome=_OUTCOMES[event.name], note=event.note, reason=None, ended_at=at, notices=())
        case Stick():
            return replace(task, outcome="stuck", reason=event.reason)
        case Broke():
            return replace(task, broken=task.broken + 1, reason=event.reason)
        case Fail():
            return replace(task, reason=event.reason, ended_at=at)
        case Cancel():
            by = f" by {event.by}" if event.by else ""
            return replace(task, reason=f"cancelled{by}", ended_at=at)
        case Wake():
            return _again(task, f"You had stopped and said that you were stuck: {task.reason}. Since then {event.why}.")
        case Retry():
            return _again(task, f"This task had ended ({_end(task)}) and was asked for once more.")
        case Released():
            return replace(task, ticket=None, fence=None)
        case Job():
            return replace(task, job=event.id)


_OUTCOMES: Final = {"done": "done", "nothing": "nothing-to-do"}


def _end(task: Task) -> str:
    return f"{task.state.value}: {task.reason or task.note or 'no reason given'}"


def _told(task: Task, notice: str | None) -> Task:
    return task if notice is None else replace(task, notices=(*task.notices, notice)[-NOTICES:])


def _send(task: Task, turn: Turn) -> Task:
    """A turn that is open may be sent again under its own key only: it never began."""
    before = task.turn
    if before is not None and before.open and before.key != turn.key:
        raise Refused(task.state, "send", f"{before.key} is open")
    if before is not None and (turn.number, turn.attempt) < (before.number, before.attempt):
        raise Refused(task.state, "send", f"{before.key} came before {turn.key}")
    return replace(task, turn=turn)


def _close(task: Task, event: Close) -> Task:
    turn = task.turn
    if turn is None or turn.key != event.key or not turn.open:
        raise Refused(task.state, "close", f"{event.key} is not open")
    completed, failed = event.outcome == "completed", event.outcome == "failed"
    counts = 1 if (completed or failed) and not turn.nudge else 0
    changed = replace(
        task,
        turn=replace(turn, open=False, outcome=event.outcome, reason=event.reason),
        used=task.used.plus(counts, event.seconds, event.usd),
        failures=task.failures + 1 if failed else (0 if completed else task.failures),
        broken=0,
        # What it had to be told, it was told.
        notices=() if completed else task.notices,
        missing=event.missing if completed else task.missing,
        note=event.note if event.note is not None else task.note,
    )
    return _told(changed, event.notice)


def _preempted(task: Task, fences: tuple[int, ...]) -> Task:
    new = [fence for fence in fences if fence > task.interruptions.last_fence]
    if not new:
        return task
    count = task.interruptions
    return replace(task, interruptions=replace(count, preemptions=count.preemptions + len(new), last_fence=max(new)))


def _again(task: Task, notice: str) -> Task:
    spent = task.used_before.plus(task.used.turns, task.used.seconds, task.used.usd)
    return replace(
        _told(task, notice if task.turn is not None else None), used=Used(), used_before=spent, reason=None,
        outcome=None, ended_at=None, missing=False, failures=0, broken=0,
    )  # fmt: skip
