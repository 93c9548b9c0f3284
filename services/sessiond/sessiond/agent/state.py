"""The agent's state, its events and its outputs, as immutable values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from sessiond.agent.protocol import Message, Question, Result
from sessiond.lock.rules import Kind

OWNER_RESTART: Final = "owner-restart"
"""Why an agent of a previous owner is stopping. The code that waits for its guard ends it."""


class Phase(StrEnum):
    """The states of the agent."""

    ASLEEP = "asleep"
    STARTING = "starting"
    IDLE = "idle"
    IN_TURN = "in_turn"
    STOPPING = "stopping"
    BROKEN = "broken"


class TurnOutcome(StrEnum):
    """The outcome of a turn."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class AgentTurn:
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
    """Whether claude reported `started` for it."""
    started: bool = False
    """Whether its init was read."""
    lifecycle: str | None = None
    result: Result | None = None
    cancel: str | None = None
    """Why it is being cancelled."""
    inherited: bool = False
    """Whether a process existed already when the turn began."""
    asked: str | None = None
    """The last control request for this turn's rules or model."""
    cost: float | None = None
    """The turn's cost in US dollars, known once its result is read."""


@dataclass(frozen=True, slots=True)
class Agent:
    """One session's agent. The fields after `turn` describe the running process."""

    conversation: str
    generation: int = 1
    """Grows each time history is lost."""
    known: bool = False
    """Whether claude has this conversation on disk, so that the process starts with --resume."""
    cwd: str = "/"
    default_model: str = ""
    """The model that the process starts with."""
    phase: Phase = Phase.ASLEEP
    why: str = ""
    fails: int = 0
    leased: bool = False
    turn: AgentTurn | None = None
    said: str = "idle"
    requests: Mapping[str, str] = field(default_factory=dict)
    """Our control requests without a response: id to name."""
    count: int = 0
    tasks: frozenset[str] = frozenset()
    stopped_tasks: frozenset[str] = frozenset()
    strays: bool = False
    """Whether tools left processes that claude does not know, as of the last fence request."""
    questions: Mapping[str, Question] = field(default_factory=dict)
    """Permission questions without an answer: request id to question."""
    foreign: bool = False
    """Whether a turn runs that claude started by itself."""
    dirty: bool = False
    """Whether something ran, or may still run, that no holder sent. The next send or grant needs a fence request."""
    fenced: bool = False
    busy: bool = False
    model: str | None = None
    rules: Kind | None = None
    cost: float = 0.0
    """The latest running total of the process, in US dollars."""
    odd: int = 0
    """Unexpected lines since the last turn's end. Each has a ledger entry."""


# ---- events ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    """A turn was accepted (committed): run it."""

    turn: AgentTurn


@dataclass(frozen=True, slots=True)
class Cancel:
    """Cancel this turn. A cancel for any other turn is dropped."""

    turn: str
    why: str


@dataclass(frozen=True, slots=True)
class LeaseBegan:
    """A lease was granted."""


@dataclass(frozen=True, slots=True)
class LeaseEnded:
    """The lease is over: close what is open."""

    why: str


@dataclass(frozen=True, slots=True)
class Spawned:
    """The process runs and its guard is recorded."""


@dataclass(frozen=True, slots=True)
class Got:
    """The agent wrote a line."""

    message: Message


@dataclass(frozen=True, slots=True)
class TreeExamined:
    """The agent's tree was examined for processes other than the agent. Happens at each fence request's answer."""

    strays: bool


@dataclass(frozen=True, slots=True)
class Fault:
    """The process cannot be used any further.

    `what` is `garbage` (a line does not follow the protocol) or `stdin-full` (the agent does not read its stdin).
    """

    what: str
    detail: str


@dataclass(frozen=True, slots=True)
class Exited:
    """The guard and its whole tree are gone.

    `status` is None if the agent never started. `why` is `history-lost`, or the reason it was ended while no
    step could be committed; otherwise it is empty. `tried` is False if the start was given up while it waited
    for a slot, which does not count as a failure.
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
class AnswerQuestion:
    """Answer the question with this request id, unless claude took it back."""

    request: str


@dataclass(frozen=True, slots=True)
class BeginConversation:
    """The history is lost or abandoned: the next process begins this conversation."""

    conversation: str
    why: str


@dataclass(frozen=True, slots=True)
class Due:
    """A timer of `machine.timers` expired. `name` and `subject` are its key."""

    name: str
    subject: str


Event = (
    Begin
    | Cancel
    | LeaseBegan
    | LeaseEnded
    | Spawned
    | Got
    | TreeExamined
    | Fault
    | Exited
    | Stop
    | AnswerQuestion
    | BeginConversation
    | Due
)


# ---- outputs ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Launch:
    """Start the process. `resume` continues its conversation."""

    resume: bool


@dataclass(frozen=True, slots=True)
class Write:
    """Write this line to the agent's stdin. `what` names it: user, interrupt, initialize, …"""

    what: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Kill:
    """End the agent's tree. `hard` sends SIGKILL to the tree and to its guard, which did not end it when asked."""

    why: str
    hard: bool = False


@dataclass(frozen=True, slots=True)
class TurnStarted:
    """The turn's init was read."""

    turn: str


@dataclass(frozen=True, slots=True)
class TurnOver:
    """The turn is closed: it can produce nothing more."""

    turn: str
    outcome: TurnOutcome
    text: str = ""
    reason: str | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)
    cost_usd: float | None = None


@dataclass(frozen=True, slots=True)
class Forward:
    """Forward the line just read to the holder of the open turn."""


@dataclass(frozen=True, slots=True)
class Busy:
    """Something that belongs to no turn started or stopped running: background tasks, a foreign turn."""

    running: bool


@dataclass(frozen=True, slots=True)
class Gone:
    """The process and its tree are gone."""


@dataclass(frozen=True, slots=True)
class Acked:
    """The agent acknowledged an interrupt."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The agent asks for a permission. An AnswerQuestion event must follow."""

    request: str


@dataclass(frozen=True, slots=True)
class Note:
    """Append a ledger entry."""

    event: str
    data: Mapping[str, Any]


Output = Launch | Write | Kill | TurnStarted | TurnOver | Forward | Busy | Gone | Acked | Asked | Note
