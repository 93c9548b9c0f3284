"""What a ledger has told so far: the lock, its turn, its agent, and the step that is being read."""

from dataclasses import dataclass, field
from enum import Enum

from sessiond.verify.places import Places
from sessiond.verify.report import Report


@dataclass(slots=True)
class Lease:
    """The living lease. `holder` and `claimed` None: not known."""

    fence: int
    ticket: str
    kind: str
    holder: str | None = None
    claimed: bool | None = None


@dataclass(slots=True)
class Drain:
    """A lease that has ended with something open."""

    fence: int
    why: str
    forced: bool = False


@dataclass(slots=True)
class Turn:
    """The open turn. None: not known, because its acceptance was not read."""

    id: str
    fence: int | None
    kind: str | None = None
    started: bool | None = None
    interrupted: bool | None = None


class Life(Enum):
    """The agent's process."""

    UNKNOWN = "unknown"
    NONE = "none"
    STARTING = "starting"
    STARTED = "started"
    LEFT = "left"
    """A predecessor's, not reaped yet."""


@dataclass(slots=True)
class Agent:
    """The agent, and whether it was asked to end."""

    life: Life = Life.UNKNOWN
    stopping: bool = False


@dataclass(slots=True)
class Ended:
    """The lease that ended in this step."""

    fence: int
    ticket: str
    reason: str


@dataclass(slots=True)
class Step:
    """What the entries of one version have said so far."""

    ended: Ended | None = None
    undrained: bool = False
    """A lease ended with something open, and `draining` did not follow yet."""
    forced: int | None = None
    """The fence that an operator ended."""
    forced_drain: bool = False
    reaped: bool = False
    began: str | None = None
    """`epoch` or `restored`, which a snapshot must follow."""
    snapshot: bool = False
    over: bool = False
    """Its end was judged."""


@dataclass(slots=True)
class State:
    """Everything that entries are judged by. `known` only from the first snapshot on."""

    report: Report = field(default_factory=Report)
    id: str = ""
    """The entry that is being read."""
    known: bool = False
    places: Places = field(default_factory=Places)
    arrival: int = 0
    """The highest yet."""
    fence: int = 0
    lease: Lease | None = None
    drain: Drain | None = None
    turn: Turn | None = None
    tasks: bool = False
    closed: str | None = None
    """The turn that was closed last."""
    agent: Agent = field(default_factory=Agent)
    step: Step = field(default_factory=Step)

    def wrong(self, invariant: str, text: str) -> None:
        """The entry that is being read breaks this."""
        self.report.violations.append((invariant, self.id, text))

    @property
    def open(self) -> bool:
        """Whether a turn or a background task is."""
        return self.turn is not None or self.tasks
