"""A task's record: what is stored, what it says of budgets and of the next turn, and its JSON. Pure."""

from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Final

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
