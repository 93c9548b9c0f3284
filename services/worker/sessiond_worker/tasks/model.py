"""The record of a task, the values derived from it (budgets, the next turn), and its JSON. Pure."""

from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Final

import orjson


class TaskState(StrEnum):
    """The states of a task; `tasks.machine` has the table of transitions."""

    QUEUED = "queued"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    STUCK = "stuck"
    DONE = "done"
    NOTHING = "nothing-to-do"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDS: Final = frozenset({TaskState.DONE, TaskState.NOTHING, TaskState.FAILED, TaskState.CANCELLED})
AT_WORK: Final = frozenset({TaskState.QUEUED, TaskState.RUNNING, TaskState.INTERRUPTED})


@dataclass(frozen=True, slots=True)
class TaskSource:
    """Where a task comes from. `kind` is cli, issue or demand; `number` is that of the issue or pull request."""

    kind: str = "cli"
    number: int | None = None
    url: str | None = None
    demand: str | None = None


@dataclass(frozen=True, slots=True)
class TaskBudget:
    """What a task may use from one start by a person to the next. Minutes count while a turn runs.

    A turn that was cancelled or lost does not count as a turn; its minutes and US dollars count. The first run of the
    task replaces None by the worker's settings. US dollars that are still None have no limit.
    """

    turns: int | None = None
    minutes: float | None = None
    usd: float | None = None

    def filled(self, default: "TaskBudget") -> "TaskBudget":
        """Return this budget, with the numbers of `default` where it has None."""
        turns = default.turns if self.turns is None else self.turns
        minutes = default.minutes if self.minutes is None else self.minutes
        return TaskBudget(turns, minutes, default.usd if self.usd is None else self.usd)


@dataclass(frozen=True, slots=True)
class TaskUsage:
    """What a task used: turns, seconds in turns, US dollars."""

    turns: int = 0
    seconds: float = 0.0
    usd: float = 0.0

    def plus(self, turns: int, seconds: float, usd: float) -> "TaskUsage":
        """Return the sum."""
        return TaskUsage(self.turns + turns, round(self.seconds + seconds, 3), round(self.usd + usd, 6))


@dataclass(frozen=True, slots=True)
class TaskTurn:
    """The turn that runs or ran last. It is `open` from before it is sent until its outcome is recorded.

    A `nudge` only asks for the outcome line that the last answer did not have.
    """

    number: int
    attempt: int
    key: str
    nudge: bool = False
    open: bool = True
    outcome: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Interruptions:
    """Counts how often the task lost its lease or its run stopped, and how many of these were preemptions."""

    count: int = 0
    preemptions: int = 0
    last: str | None = None
    last_fence: int = 0
    """The highest fence whose preemption is counted."""


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task to add. `session` is owner/repo; `asked_by` is a login; `key` identifies what the task is for."""

    key: str
    session: str
    title: str
    instructions: str
    source: TaskSource = field(default_factory=TaskSource)
    asked_by: str = ""
    budget: TaskBudget = field(default_factory=TaskBudget)


@dataclass(frozen=True, slots=True)
class Task:
    """The record of a task. Times are RFC 3339 UTC.

    `job`: the rq job that wakes a worker. `ticket`: the task's place in the queue, until it is given back. `ledger`:
    the id of the last ledger entry read. `notices`: sentences for the next prompt. `missing`: the last answer had no
    outcome line. `failures`: failed turns in a row. `broken`: runs in a row that ended with an unexpected error.
    `change`: the name of the last change, which makes a repeated change harmless.
    """

    id: str
    key: str
    session: str
    title: str
    instructions: str
    source: TaskSource
    asked_by: str
    budget: TaskBudget
    created_at: str
    updated_at: str
    state: TaskState = TaskState.QUEUED
    reason: str | None = None
    outcome: str | None = None
    note: str | None = None
    used: TaskUsage = field(default_factory=TaskUsage)
    used_before: TaskUsage = field(default_factory=TaskUsage)
    turn: TaskTurn | None = None
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
        """Whether the task has ended. Its key is free then."""
        return self.state in ENDS

    @property
    def wants_run(self) -> bool:
        """Whether a run has something to do: turns, or a ticket to give back."""
        return self.state in AT_WORK or self.ticket is not None


# ---- derived from the record ---------------------------------------------------------------------------


def used_up(task: Task) -> str | None:
    """Return which budget is used up, in words; None while something is left of each."""
    budget, used = task.budget, task.used
    if budget.turns is not None and used.turns >= budget.turns:
        return f"its budget of {budget.turns} turns is used up"
    if budget.minutes is not None and used.seconds >= budget.minutes * 60:
        return f"its budget of {budget.minutes:g} minutes is used up"
    if budget.usd is not None and used.usd >= budget.usd:
        return f"its budget of {budget.usd:g} US dollars is used up"
    return None


def next_turn(task: Task) -> TaskTurn:
    """Return the turn to send: the open one again, the next attempt of one that did not complete, or the next number.

    Numbers never start again, also after a retry, so that each key names one turn.
    """
    last = task.turn
    if last is not None and last.open:
        return last
    if last is not None and last.outcome != "completed" and last.nudge == task.missing:
        number, attempt = last.number, last.attempt + 1
    else:
        number, attempt = (last.number if last is not None else 0) + 1, 1
    return TaskTurn(number, attempt, f"{task.id}:{number}:{attempt}", nudge=task.missing)


# ---- as JSON -----------------------------------------------------------------------------------


def dumps(task: Task) -> bytes:
    """Return the record as JSON."""
    return orjson.dumps(task)


def loads(text: bytes | str) -> Task:
    """Read a record from `dumps`. Fields that this version does not know are left out."""
    body: dict[str, Any] = orjson.loads(text)
    known = {f.name for f in fields(Task)}
    found = {name: value for name, value in body.items() if name in known}
    nested = {
        "source": TaskSource, "budget": TaskBudget, "used": TaskUsage, "used_before": TaskUsage,
        "interruptions": Interruptions, "turn": TaskTurn,
    }  # fmt: skip
    for name, make in nested.items():
        if found.get(name) is not None:
            found[name] = make(**found[name])
    return Task(**{**found, "state": TaskState(found["state"]), "notices": tuple(found.get("notices") or ())})
