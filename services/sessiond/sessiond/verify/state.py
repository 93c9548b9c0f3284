"""The state that the entries read so far describe: the lock, its turn, its agent, and the current step."""

from dataclasses import dataclass, field
from enum import Enum

from sessiond.verify.places import Places
from sessiond.verify.report import Report


@dataclass(slots=True)
class Lease:
    """The current lease. None in `holder` or `claimed` means unknown."""

    fence: int
    ticket: str
    kind: str
    holder: str | None = None
    claimed: bool | None = None


@dataclass(slots=True)
class Drain:
    """A lease that has ended while a turn or a background task was open."""

    fence: int
    why: str
    forced: bool = False


@dataclass(slots=True)
class OpenTurn:
    """The open turn. None in a field means unknown, because the turn's acceptance was not read."""

    id: str
    fence: int | None
    kind: str | None = None
    started: bool | None = None
    interrupted: bool | None = None


class Life(Enum):
    """The state of the agent's process."""

    UNKNOWN = "unknown"
    NONE = "none"
    STARTING = "starting"
    STARTED = "started"
    LEFT = "left"
    """Left by the previous owner and not reaped yet."""


@dataclass(slots=True)
class Agent:
    """The agent's process, and whether it was asked to end."""

    life: Life = Life.UNKNOWN
    stopping: bool = False


@dataclass(slots=True)
class Ended:
    """The lease that ended in the current step."""

    fence: int
    ticket: str
    reason: str


@dataclass(slots=True)
class LedgerStep:
    """The facts from the entries of the current version that were read so far."""

    ended: Ended | None = None
    undrained: bool = False
    """Whether a lease ended with something open and `draining` has not followed yet."""
    forced: int | None = None
    """The fence that an operator force-released."""
    forced_drain: bool = False
    reaped: bool = False
    began: str | None = None
    """`epoch` or `restored`. A snapshot must follow it."""
    snapshot: bool = False
    over: bool = False
    """Whether the step's end was checked."""


@dataclass(slots=True)
class State:
    """Everything that later entries are checked against. `known` is True from the first snapshot on."""

    report: Report = field(default_factory=Report)
    id: str = ""
    """The id of the current entry."""
    known: bool = False
    places: Places = field(default_factory=Places)
    arrival: int = 0
    """The highest arrival so far."""
    fence: int = 0
    lease: Lease | None = None
    drain: Drain | None = None
    turn: OpenTurn | None = None
    tasks: bool = False
    closed: str | None = None
    """The latest closed turn."""
    agent: Agent = field(default_factory=Agent)
    step: LedgerStep = field(default_factory=LedgerStep)

    def wrong(self, invariant: str, text: str) -> None:
        """Report that the current entry breaks this invariant."""
        self.report.violations.append((invariant, self.id, text))

    @property
    def open(self) -> bool:
        """Whether a turn or a background task is open."""
        return self.turn is not None or self.tasks
