"""What the agent's machine knows, what can happen to it, and what it asks for. Pure values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from sessiond.agent.protocol import Message, Question, Result
from sessiond.lock.rules import Kind

OWNER_RESTART: Final = "owner-restart"
"""Why an agent is stopping that a predecessor left: whoever waits for its guard ends it."""


class Phase(StrEnum):
    """The states of the agent."""

    ASLEEP = "asleep"
    STARTING = "starting"
    IDLE = "idle"
    IN_TURN = "in_turn"
    STOPPING = "stopping"
    BROKEN = "broken"


class Outcome(StrEnum):
    """What became of a turn."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Turn:
    """The one open turn, from `turn accepted` on."""

    id: str
    uuid: str
    prompt: str
    kind: Kind
    model: str
    composed: bool = True
    timeout: float | None = None
    written: bool = False
    taken: bool = False
    """claude said `started` for it."""
    started: bool = False
    """Its init was read."""
    lifecycle: str | None = None
    result: Result | None = None
    cancel: str | None = None
    """Why it is being cancelled."""
    inherited: bool = False
    """The process that it is to run in was there before it."""
    asked: str | None = None
    """The control request that it made last, for its rules or its model."""
    cost: float | None = None
    """What it cost in US dollars, once its result is read."""


@dataclass(frozen=True, slots=True)
class Agent:
    """One session's agent. Everything below `phase` but the conversation is of the living process."""

    conversation: str
    generation: int = 1
    """Grows whenever history was lost."""
    known: bool = False
    """claude has this conversation on disk: start with --resume."""
    cwd: str = "/"
    default_model: str = ""
    """What the process is started with."""
    phase: Phase = Phase.ASLEEP
    why: str = ""
    fails: int = 0
    leased: bool = False
    turn: Turn | None = None
    said: str = "idle"
    requests: Mapping[str, str] = field(default_factory=dict)
    """Control requests of ours that were not answered yet: id to subtype."""
    count: int = 0
    tasks: frozenset[str] = frozenset()
    stopped_tasks: frozenset[str] = frozenset()
    strays: bool = False
    """Processes that its tools left behind live, as of the last fence; claude does not know of them."""
    questions: Mapping[str, Question] = field(default_factory=dict)
    """Permissions that it asked for and has no answer to: request id to question."""
    foreign: bool = False
    dirty: bool = False
    """Something that no holder sent ran, or may still run; nothing is sent or granted before idle and fence."""
    fenced: bool = False
    busy: bool = False
    model: str | None = None
    rules: Kind | None = None
    cost: float = 0.0
    """The running total as it was told last, in US dollars."""
    odd: int = 0
    """Lines since the last turn's end that nobody asked for, each with an entry in the ledger."""


# ---- events ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    """A turn was accepted (committed) and wants to run."""

    turn: Turn


@dataclass(frozen=True, slots=True)
class Cancel:
    """End this turn; a cancel for another one is dropped."""

    turn: str
    why: str


@dataclass(frozen=True, slots=True)
class LeaseBegan:
    """A lease was granted."""


@dataclass(frozen=True, slots=True)
class LeaseEnded:
    """The lease is over: whatever is open must be closed."""

    why: str


@dataclass(frozen=True, slots=True)
class Spawned:
    """The process lives and its guard is recorded."""


@dataclass(frozen=True, slots=True)
class Got:
    """A line of the agent."""

    message: Message


@dataclass(frozen=True, slots=True)
class Looked:
    """Whether anything but the agent itself lives in its tree; comes with each fence's answer."""

    strays: bool


@dataclass(frozen=True, slots=True)
class Fault:
    """The process cannot be used any further: a line that is no protocol (`garbage`), stdin not read (`stdin-full`)."""

    what: str
    detail: str


@dataclass(frozen=True, slots=True)
class Exited:
    """The guard is gone, and the whole tree with it. `status` None: it never started.

    `why`: for what it was ended while no step could be made, or `history-lost`; empty for anything else. `tried` False:
    it was given up before its start was tried, waiting for a slot; no failure of its own.
    """

    status: int | None
    stderr: str = ""
    why: str = ""
    tried: bool = True


@dataclass(frozen=True, slots=True)
class Stop:
    """End the process (sleep, restart, forced, shutdown …)."""

    why: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer the question with this request id, unless it was taken back."""

    request: str


@dataclass(frozen=True, slots=True)
class Afresh:
    """The history is lost or given up: the next process begins this conversation."""

    conversation: str
    why: str


@dataclass(frozen=True, slots=True)
class Due:
    """A timer of `machine.timers` ran out: (name, subject) there."""

    name: str
    subject: str


Event = (
    Begin | Cancel | LeaseBegan | LeaseEnded | Spawned | Got | Looked | Fault | Exited | Stop | Answer | Afresh | Due
)


# ---- outputs ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Launch:
    """Start the process, fresh or resumed."""

    resume: bool


@dataclass(frozen=True, slots=True)
class Write:
    """Write this line to stdin. `what` names it: user, interrupt, initialize, …"""

    what: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Kill:
    """End the agent's tree. `hard`: its guard was asked and has not done it; SIGKILL, to the guard as well."""

    why: str
    hard: bool = False


@dataclass(frozen=True, slots=True)
class TurnStarted:
    """The turn's init was read."""

    turn: str


@dataclass(frozen=True, slots=True)
class TurnOver:
    """The turn is closed; nothing of it can still come."""

    turn: str
    outcome: Outcome
    text: str = ""
    reason: str | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)
    cost_usd: float | None = None


@dataclass(frozen=True, slots=True)
class Forward:
    """The line just read belongs to the holder of the open turn."""


@dataclass(frozen=True, slots=True)
class Busy:
    """Whether something that no turn accounts for runs (background tasks, a foreign turn)."""

    running: bool


@dataclass(frozen=True, slots=True)
class Gone:
    """The process and its tree are gone."""


@dataclass(frozen=True, slots=True)
class Acked:
    """The interrupt was acknowledged."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The agent asks for a permission: an Answer must follow."""

    request: str


@dataclass(frozen=True, slots=True)
class Note:
    """A ledger entry."""

    event: str
    data: Mapping[str, Any]


Output = Launch | Write | Kill | TurnStarted | TurnOver | Forward | Busy | Gone | Acked | Asked | Note
