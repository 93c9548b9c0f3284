"""What may happen to a task, as data. `worker.task` has the table of when it may. Pure."""

from dataclasses import dataclass
from typing import ClassVar

from sessiond_worker.tasks.model import Budget, Turn


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
