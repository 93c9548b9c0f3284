"""The state machine of a task: which event each state accepts, and what it changes. Pure: no clock, no I/O.

    queued --start--> running --grant, send, close--> running --done | nothing | stick | fail--> its end
                         ^ |
                  start, | +--interrupt--> interrupted          stuck --wake--> queued
                  grant  +------------------------+             any end, stuck --retry--> queued

`interrupted`: the task's lease was lost or its run stopped; the next run continues it. `stuck`: the task waits for a
person. It has not ended, so its key stays taken. Budgets count from the last start by add, `wake` or `retry`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from sessiond_worker.tasks import events as ev
from sessiond_worker.tasks.events import EndEvent, Event, QueueEvent, RunEvent
from sessiond_worker.tasks.model import ENDS, Task, TaskState, TaskTurn, TaskUsage

NOTICES: Final = 40
"""The newest notices that are kept for the next prompt. Each interruption may add one."""
_ANYWHERE: Final = ("preempted", "released", "job")

TABLE: Final[Mapping[tuple[TaskState, str], TaskState]] = {
    (TaskState.QUEUED, "start"): TaskState.RUNNING,
    (TaskState.QUEUED, "cancel"): TaskState.CANCELLED,
    (TaskState.QUEUED, "fail"): TaskState.FAILED,
    # The previous run died; the next one starts.
    (TaskState.RUNNING, "start"): TaskState.RUNNING,
    (TaskState.RUNNING, "queue"): TaskState.RUNNING,
    (TaskState.RUNNING, "grant"): TaskState.RUNNING,
    (TaskState.RUNNING, "send"): TaskState.RUNNING,
    (TaskState.RUNNING, "close"): TaskState.RUNNING,
    (TaskState.RUNNING, "interrupt"): TaskState.INTERRUPTED,
    (TaskState.RUNNING, "broke"): TaskState.RUNNING,
    (TaskState.RUNNING, "done"): TaskState.DONE,
    (TaskState.RUNNING, "nothing"): TaskState.NOTHING,
    (TaskState.RUNNING, "stick"): TaskState.STUCK,
    (TaskState.RUNNING, "fail"): TaskState.FAILED,
    (TaskState.RUNNING, "cancel"): TaskState.CANCELLED,
    (TaskState.INTERRUPTED, "start"): TaskState.RUNNING,
    (TaskState.INTERRUPTED, "queue"): TaskState.INTERRUPTED,
    (TaskState.INTERRUPTED, "grant"): TaskState.RUNNING,
    (TaskState.INTERRUPTED, "broke"): TaskState.INTERRUPTED,
    (TaskState.INTERRUPTED, "interrupt"): TaskState.INTERRUPTED,
    (TaskState.INTERRUPTED, "fail"): TaskState.FAILED,
    (TaskState.INTERRUPTED, "cancel"): TaskState.CANCELLED,
    (TaskState.STUCK, "wake"): TaskState.QUEUED,
    (TaskState.STUCK, "retry"): TaskState.QUEUED,
    (TaskState.STUCK, "cancel"): TaskState.CANCELLED,
    **{(end, "retry"): TaskState.QUEUED for end in sorted(ENDS)},
    **{(state, name): state for state in TaskState for name in _ANYWHERE},
}


class TaskRefused(Exception):
    """The task's state does not accept this event."""

    def __init__(self, state: TaskState, event: str, why: str = "") -> None:
        super().__init__(f"a task that is {state.value} does not accept {event}" + (f": {why}" if why else ""))
        self.state = state
        self.event = event


def decide(task: Task, event: Event, at: str) -> Task:
    """Return the task after `event`. `at` is the event's time, RFC 3339 UTC.

    Raises:
        TaskRefused: the state does not accept the event; nothing has changed.
    """
    after = TABLE.get((task.state, event.name))
    if after is None:
        raise TaskRefused(task.state, event.name)
    return replace(_change(task, event, at), state=after, updated_at=at)


def _change(task: Task, event: Event, at: str) -> Task:
    if isinstance(event, RunEvent):
        return _progress(task, event, at)
    if isinstance(event, EndEvent):
        return _end(task, event, at)
    return _queue(task, event)


def _progress(task: Task, event: RunEvent, at: str) -> Task:
    match event:
        case ev.Start():
            budget = task.budget.filled(event.budget)
            return replace(task, runs=task.runs + 1, started_at=task.started_at or at, budget=budget)
        case ev.Queue():
            return replace(task, ticket=event.ticket)
        case ev.Grant():
            return replace(_notify(task, event.notice), fence=event.fence, ledger=event.ledger or task.ledger)
        case ev.Send():
            return _send(task, event.turn)
        case ev.Close():
            return _close(task, event)
        case ev.Preempted():
            return _count_preemptions(task, event.fences)
        case ev.Interrupt():
            count = replace(task.interruptions, count=task.interruptions.count + 1, last=event.by)
            return replace(_notify(task, event.notice), interruptions=count, fence=None)
        case ev.Released():
            return replace(task, ticket=None, fence=None)


def _end(task: Task, event: EndEvent, at: str) -> Task:
    match event:
        case ev.Done() | ev.Nothing():
            return replace(task, outcome=_OUTCOMES[event.name], note=event.note, reason=None, ended_at=at, notices=())
        case ev.Stick():
            return replace(task, outcome="stuck", reason=event.reason)
        case ev.Broke():
            return replace(task, broken=task.broken + 1, reason=event.reason)
        case ev.Fail():
            return replace(task, reason=event.reason, ended_at=at)
        case ev.Cancel():
            by = f" by {event.by}" if event.by else ""
            return replace(task, reason=f"cancelled{by}", ended_at=at)


def _queue(task: Task, event: QueueEvent) -> Task:
    match event:
        case ev.Wake():
            return _again(task, f"You had stopped and said that you were stuck: {task.reason}. Since then {event.why}.")
        case ev.Retry():
            return _again(task, f"This task had ended ({_why_ended(task)}) and was asked for once more.")
        case ev.Job():
            return replace(task, job=event.id)


_OUTCOMES: Final = {"done": "done", "nothing": "nothing-to-do"}


def _why_ended(task: Task) -> str:
    return f"{task.state.value}: {task.reason or task.note or 'no reason given'}"


def _notify(task: Task, notice: str | None) -> Task:
    return task if notice is None else replace(task, notices=(*task.notices, notice)[-NOTICES:])


def _send(task: Task, turn: TaskTurn) -> Task:
    """Open the turn. While a turn is open, only that turn may be sent again, under its own key: it never began."""
    before = task.turn
    if before is not None and before.open and before.key != turn.key:
        raise TaskRefused(task.state, "send", f"{before.key} is open")
    if before is not None and (turn.number, turn.attempt) < (before.number, before.attempt):
        raise TaskRefused(task.state, "send", f"{before.key} came before {turn.key}")
    return replace(task, turn=turn)


def _close(task: Task, event: ev.Close) -> Task:
    turn = task.turn
    if turn is None or turn.key != event.key or not turn.open:
        raise TaskRefused(task.state, "close", f"{event.key} is not open")
    completed, failed = event.outcome == "completed", event.outcome == "failed"
    counts = 1 if (completed or failed) and not turn.nudge else 0
    changed = replace(
        task,
        turn=replace(turn, open=False, outcome=event.outcome, reason=event.reason),
        used=task.used.plus(counts, event.seconds, event.usd),
        failures=task.failures + 1 if failed else (0 if completed else task.failures),
        broken=0,
        # The completed turn's prompt contained them.
        notices=() if completed else task.notices,
        missing=event.missing if completed else task.missing,
        note=event.note if event.note is not None else task.note,
    )
    return _notify(changed, event.notice)


def _count_preemptions(task: Task, fences: tuple[int, ...]) -> Task:
    new = [fence for fence in fences if fence > task.interruptions.last_fence]
    if not new:
        return task
    count = task.interruptions
    return replace(task, interruptions=replace(count, preemptions=count.preemptions + len(new), last_fence=max(new)))


def _again(task: Task, notice: str) -> Task:
    spent = task.used_before.plus(task.used.turns, task.used.seconds, task.used.usd)
    return replace(
        _notify(task, notice if task.turn is not None else None), used=TaskUsage(), used_before=spent, reason=None,
        outcome=None, ended_at=None, missing=False, failures=0, broken=0,
    )  # fmt: skip
