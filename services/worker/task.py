"""A task: its record, its states, and the table of what may happen in which of them. Pure: no clock, no I/O.

    queued --start--> running --grant, send, close--> running --done | nothing | stick | fail--> its end
                         ^ |
                  start, | +--interrupt--> interrupted          stuck --wake--> queued
                  grant  +------------------------+             any end, stuck --retry--> queued

`interrupted` is a running task whose lease or run is gone for now; it comes back by itself. `stuck` waits for a
person; it is no end, so its key stays taken. What a task has used counts from its last start by `wake` or `retry`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, ClassVar, Final

import orjson


class State(StrEnum):
    """Where a task stands."""

    QUEUED = "queued"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    STUCK = "stuck"
    DONE = "done"
    NOTHING = "nothing-to-do"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDS: Final = frozenset({State.DONE, State.NOTHING, State.FAILED, State.CANCELLED})
AT_WORK: Final = frozenset({State.QUEUED, State.RUNNING, State.INTERRUPTED})


@dataclass(frozen=True, slots=True)
class Source:
    """Where a task comes from. `kind`: cli, issue or demand; `number` of the issue or pull request."""

    kind: str = "cli"
    number: int | None = None
    url: str | None = None
    demand: str | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """What a task may use from one start by a person to the next. Minutes count while a turn runs.

    A turn that was cut by others is no turn used; its minutes and its money are. None: as the worker's settings say,
    which are filled in by the task's first run; US dollars that are None then have no bound.
    """

    turns: int | None = None
    minutes: float | None = None
    usd: float | None = None

    def filled(self, default: "Budget") -> "Budget":
        """With the default's numbers where it has none."""
        turns = default.turns if self.turns is None else self.turns
        minutes = default.minutes if self.minutes is None else self.minutes
        return Budget(turns, minutes, default.usd if self.usd is None else self.usd)


@dataclass(frozen=True, slots=True)
class Used:
    """What was used: turns, seconds in turns, US dollars."""

    turns: int = 0
    seconds: float = 0.0
    usd: float = 0.0

    def plus(self, turns: int, seconds: float, usd: float) -> "Used":
        """The sum."""
        return Used(self.turns + turns, round(self.seconds + seconds, 3), round(self.usd + usd, 6))


@dataclass(frozen=True, slots=True)
class Turn:
    """The turn that is being run, or ran last. `open` from before it is sent until its outcome is recorded."""

    number: int
    attempt: int
    key: str
    nudge: bool = False
    open: bool = True
    outcome: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Interruptions:
    """How often a lease of this task was lost or its run stopped, how many of these were preemptions, the last one."""

    count: int = 0
    preemptions: int = 0
    last: str | None = None
    last_fence: int = 0
    """The highest fence whose loss is counted."""


@dataclass(frozen=True, slots=True)
class New:
    """A task to be added. `session` is owner/repo."""

    key: str
    session: str
    title: str
    instructions: str
    source: Source = field(default_factory=Source)
    asked_by: str = ""
    budget: Budget = field(default_factory=Budget)


@dataclass(frozen=True, slots=True)
class Task:
    """The record. Times are RFC 3339 UTC; `job` is the rq job that wakes a worker, `ticket` its place until it is
    given back, `ledger` the last entry that was read.

    `notices` is what the next prompt has to tell; `missing` that the last turn's outcome line was; `failures`
    counts failed turns in a row, `broken` runs in a row that ended by a fault of ours.
    """

    id: str
    key: str
    session: str
    title: str
    instructions: str
    source: Source
    asked_by: str
    budget: Budget
    created_at: str
    updated_at: str
    state: State = State.QUEUED
    reason: str | None = None
    outcome: str | None = None
    note: str | None = None
    used: Used = field(default_factory=Used)
    used_before: Used = field(default_factory=Used)
    turn: Turn | None = None
    interruptions: Interruptions = field(default_factory=Interruptions)
    notices: tuple[str, ...] = ()
    missing: bool = False
    failures: int = 0
    broken: int = 0
    runs: int = 0
    ticket: str | None = None
    fence: int | None = None
    ledger: str | None = None
    job: str | None = None
    change: str | None = None
    started_at: str | None = None
    ended_at: str | None = None

    @property
    def ended(self) -> bool:
        """Whether it has ended; its key is free then."""
        return self.state in ENDS

    @property
    def wants_run(self) -> bool:
        """Whether a run has something to do for it: turns, or a ticket to give back."""
        return self.state in AT_WORK or self.ticket is not None


# ---- events ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """A run has claimed the task; `budget` is the worker's own."""

    name: ClassVar = "start"
    budget: Budget


@dataclass(frozen=True, slots=True)
class Queue:
    """Its ticket."""

    name: ClassVar = "queue"
    ticket: str


@dataclass(frozen=True, slots=True)
class Grant:
    """The lease. `ledger` is the last entry that was read."""

    name: ClassVar = "grant"
    fence: int
    ledger: str | None = None
    notice: str | None = None


@dataclass(frozen=True, slots=True)
class Send:
    """The next turn is about to be sent under this key."""

    name: ClassVar = "send"
    turn: Turn


@dataclass(frozen=True, slots=True)
class Close:
    """What became of the turn with this key: completed, cancelled, failed or lost."""

    name: ClassVar = "close"
    key: str
    outcome: str
    reason: str | None = None
    seconds: float = 0.0
    usd: float = 0.0
    missing: bool = False
    note: str | None = None
    notice: str | None = None


@dataclass(frozen=True, slots=True)
class Preempted:
    """The leases with these fences were preempted; counted once each, whatever the state."""

    name: ClassVar = "preempted"
    fences: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Interrupt:
    """The lease or the run is gone for now. `notice` is for the agent."""

    name: ClassVar = "interrupt"
    by: str
    notice: str | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """The agent says that the task is done."""

    name: ClassVar = "done"
    note: str


@dataclass(frozen=True, slots=True)
class Nothing:
    """The agent says that there is nothing to do."""

    name: ClassVar = "nothing"
    note: str


@dataclass(frozen=True, slots=True)
class Stick:
    """It cannot go on without a person."""

    name: ClassVar = "stick"
    reason: str


@dataclass(frozen=True, slots=True)
class Broke:
    """A run ended by a fault of ours."""

    name: ClassVar = "broke"
    reason: str


@dataclass(frozen=True, slots=True)
class Fail:
    """It cannot be run at all."""

    name: ClassVar = "fail"
    reason: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """Somebody does not want it any more."""

    name: ClassVar = "cancel"
    by: str = ""


@dataclass(frozen=True, slots=True)
class Wake:
    """A stuck task may go on. `why` is told to the agent."""

    name: ClassVar = "wake"
    why: str


@dataclass(frozen=True, slots=True)
class Retry:
    """Once more, by somebody's wish."""

    name: ClassVar = "retry"
    by: str = ""


@dataclass(frozen=True, slots=True)
class Released:
    """Its ticket is given back."""

    name: ClassVar = "released"


@dataclass(frozen=True, slots=True)
class Job:
    """An rq job was made to wake a worker for it."""

    name: ClassVar = "job"
    id: str


Event = (
    Start | Queue | Grant | Send | Close | Preempted | Interrupt | Done | Nothing | Stick | Broke | Fail | Cancel | Wake
    | Retry | Released | Job
)  # fmt: skip

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


# ---- what the record says ----------------------------------------------------------------------


def used_up(task: Task) -> str | None:
    """Which budget is used up, in words; None while there is something left of each."""
    budget, used = task.budget, task.used
    if budget.turns is not None and used.turns >= budget.turns:
        return f"its budget of {budget.turns} turns is used up"
    if budget.minutes is not None and used.seconds >= budget.minutes * 60:
        return f"its budget of {budget.minutes:g} minutes is used up"
    if budget.usd is not None and used.usd >= budget.usd:
        return f"its budget of {budget.usd:g} US dollars is used up"
    return None


def next_turn(task: Task) -> Turn:
    """The turn to be sent: the open one again, the next attempt of one that came to nothing, or the next number.

    Numbers grow for ever, over retries too, so that a key never means two turns.
    """
    last = task.turn
    if last is not None and last.open:
        return last
    if last is not None and last.outcome != "completed" and last.nudge == task.missing:
        number, attempt = last.number, last.attempt + 1
    else:
        number, attempt = (last.number if last is not None else 0) + 1, 1
    return Turn(number, attempt, f"{task.id}:{number}:{attempt}", nudge=task.missing)


# ---- as JSON -----------------------------------------------------------------------------------


def dumps(task: Task) -> bytes:
    """The record as JSON."""
    return orjson.dumps(task)


def loads(text: bytes | str) -> Task:
    """From `dumps`; a field that this version does not know is left out."""
    body: dict[str, Any] = orjson.loads(text)
    known = {f.name for f in fields(Task)}
    found = {name: value for name, value in body.items() if name in known}
    nested = {
        "source": Source, "budget": Budget, "used": Used, "used_before": Used, "interruptions": Interruptions,
        "turn": Turn,
    }  # fmt: skip
    for name, make in nested.items():
        if found.get(name) is not None:
            found[name] = make(**found[name])
    return Task(**{**found, "state": State(found["state"]), "notices": tuple(found.get("notices") or ())})
