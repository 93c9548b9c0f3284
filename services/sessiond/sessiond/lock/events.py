"""What can happen to a lock, what a step does, and why one is refused. Pure values."""

from dataclasses import dataclass
from typing import Any

from sessiond.lock.rules import Kind, LeaseEnd, TicketEnd
from sessiond.lock.state import Lock

# ---- events: requests ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Take:
    """A demand exists: a place is taken, not present."""

    ticket: str
    kind: Kind
    rank: int
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """A holder waits on a ticket."""

    ticket: str
    holder: str


@dataclass(frozen=True, slots=True)
class WaitOver:
    """A wait ran its time; its holder may ask again within `poll_grace`."""

    ticket: str
    holder: str


@dataclass(frozen=True, slots=True)
class HangUp:
    """A waiting holder's connection closed: its presence ends at once."""

    ticket: str
    holder: str


@dataclass(frozen=True, slots=True)
class Claim:
    """The holder's first renew (a turn claims too)."""

    fence: int


@dataclass(frozen=True, slots=True)
class Release:
    """The holder is done; the ticket ends."""

    fence: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """A release with a lost lease's secret: the ticket ends unless another holder waited on it since."""

    ticket: str
    holder: str


@dataclass(frozen=True, slots=True)
class Withdraw:
    """The demand is gone (holder None), or its current holder gives it up."""

    ticket: str
    holder: str | None = None


@dataclass(frozen=True, slots=True)
class ForceRelease:
    """An operator ends the lease with this fence, in every state, once."""

    fence: int


@dataclass(frozen=True, slots=True)
class AcceptTurn:
    """The holder starts a turn."""

    fence: int
    turn: str


# ---- events: the agent -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TurnClosed:
    """The open turn is closed: nothing of it can still come."""

    turn: str


@dataclass(frozen=True, slots=True)
class TasksChanged:
    """Whether background tasks of the agent run."""

    running: bool


@dataclass(frozen=True, slots=True)
class Reaped:
    """The agent's whole tree is gone, and with it whatever was open."""


# ---- events: timers --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Due:
    """A timer of `machine.timers` ran out."""

    timer: "Timer"


@dataclass(frozen=True, slots=True)
class Timer:
    """A deadline that the state asks for; it runs from the step at which it first appears."""

    name: str
    subject: str


Event = (
    Take | Wait | WaitOver | HangUp | Claim | Release | GiveUp | Withdraw | ForceRelease
    | AcceptTurn | TurnClosed | TasksChanged | Reaped | Due
)  # fmt: skip


# ---- effects: what the owner loop does once the step is committed ----------------------------


@dataclass(frozen=True, slots=True)
class Granted:
    """Tell `holder`, who waits on `ticket`. `skipped` were passed over or lapsed."""

    ticket: str
    holder: str
    fence: int
    skipped: frozenset[str]


@dataclass(frozen=True, slots=True)
class LeaseOver:
    """The lease with this fence ended."""

    fence: int
    ticket: str
    holder: str
    reason: LeaseEnd


@dataclass(frozen=True, slots=True)
class TicketOver:
    """The ticket ended; whoever waits on it is told."""

    ticket: str
    reason: TicketEnd


@dataclass(frozen=True, slots=True)
class Displaced:
    """Another holder's wait superseded this one's."""

    ticket: str
    holder: str


@dataclass(frozen=True, slots=True)
class StartDrain:
    """What is open must be closed: cancel the turn, stop the tasks."""

    fence: int
    why: LeaseEnd


@dataclass(frozen=True, slots=True)
class RecoverNow:
    """A forced drain waits no longer: stop the agent."""

    fence: int


Effect = Granted | LeaseOver | TicketOver | Displaced | StartDrain | RecoverNow
Entry = tuple[str, dict[str, Any]]
"""A ledger entry: its event's name and data."""


@dataclass(frozen=True, slots=True)
class Step:
    """One decision: the state after it, what the ledger says, and what to do when committed."""

    lock: Lock
    ledger: tuple[Entry, ...] = ()
    effects: tuple[Effect, ...] = ()


# ---- refusals --------------------------------------------------------------------------------


class Refused(Exception):
    """The event is not allowed now; the lock is unchanged. Each subclass is one HTTP problem."""


class NoTicket(Refused):
    """No such ticket lives."""


class Superseded(Refused):
    """Another holder's wait displaced this holder, for good (rule 9)."""


class KindMismatch(Refused):
    """The key's ticket is of the other kind."""


class NotHeld(Refused):
    """No lease lives (or drains, for a force-release) under this fence."""


class TurnOpen(Refused):
    """The lease's turn is still open."""


class InvariantBroken(Exception):
    """A step would break an invariant; `name` is its name in docs/architecture.md."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"{name}: {detail}")
        self.name = name
