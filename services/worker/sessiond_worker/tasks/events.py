"""The events of a task. `tasks.machine` has the table of the events that each state accepts. Pure."""

from dataclasses import dataclass
from typing import ClassVar

from sessiond_worker.tasks.model import TaskBudget, TaskTurn

# ---- events of a run -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """A run has acquired the task's run lease. `budget` is the worker's default."""

    name: ClassVar = "start"
    budget: TaskBudget


@dataclass(frozen=True, slots=True)
class Queue:
    """The run has taken a ticket for the task."""

    name: ClassVar = "queue"
    ticket: str


@dataclass(frozen=True, slots=True)
class Grant:
    """The lease was granted. `ledger` is the id of the last ledger entry read, `notice` is for the next prompt."""

    name: ClassVar = "grant"
    fence: int
    ledger: str | None = None
    notice: str | None = None


@dataclass(frozen=True, slots=True)
class Send:
    """The run is about to send this turn."""

    name: ClassVar = "send"
    turn: TaskTurn


@dataclass(frozen=True, slots=True)
class Close:
    """The turn with this key is closed. `outcome` is completed, cancelled, failed or lost.

    `seconds` and `usd` are what it used. `missing` says that the answer has no outcome line. `notice` is for the next
    prompt.
    """

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
    """The leases with these fences were preempted. Each fence counts once, in every state."""

    name: ClassVar = "preempted"
    fences: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Interrupt:
    """The lease was lost or the run stopped; the task goes on later. `notice` is for the next prompt."""

    name: ClassVar = "interrupt"
    by: str
    notice: str | None = None


@dataclass(frozen=True, slots=True)
class Released:
    """The task's ticket was given back."""

    name: ClassVar = "released"


# ---- events that end the task or stop its progress -------------------------------------------------


@dataclass(frozen=True, slots=True)
class Done:
    """The agent reports that the task is done."""

    name: ClassVar = "done"
    note: str


@dataclass(frozen=True, slots=True)
class Nothing:
    """The agent reports that there is nothing to do."""

    name: ClassVar = "nothing"
    note: str


@dataclass(frozen=True, slots=True)
class Stick:
    """The task cannot go on without a person."""

    name: ClassVar = "stick"
    reason: str


@dataclass(frozen=True, slots=True)
class Broke:
    """A run ended with an unexpected error."""

    name: ClassVar = "broke"
    reason: str


@dataclass(frozen=True, slots=True)
class Fail:
    """The task cannot be run at all."""

    name: ClassVar = "fail"
    reason: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """Somebody cancelled the task. `by` is a login; it may be empty."""

    name: ClassVar = "cancel"
    by: str = ""


# ---- events that queue the task again --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wake:
    """A stuck task may go on. `why` is part of the next prompt."""

    name: ClassVar = "wake"
    why: str


@dataclass(frozen=True, slots=True)
class Retry:
    """Somebody asked for an ended or stuck task once more. `by` is a login; it may be empty."""

    name: ClassVar = "retry"
    by: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """An rq job was made to wake a worker for the task."""

    name: ClassVar = "job"
    id: str


RunEvent = Start | Queue | Grant | Send | Close | Preempted | Interrupt | Released
EndEvent = Done | Nothing | Stick | Broke | Fail | Cancel
QueueEvent = Wake | Retry | Job
Event = RunEvent | EndEvent | QueueEvent
