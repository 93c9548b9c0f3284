"""The lock's events, effects and refusals, as immutable values."""

from dataclasses import dataclass
from typing import Any

from sessiond.lock.rules import Kind, LeaseEnd, TicketEnd
from sessiond.lock.state import Lock

# ---- events: requests ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Take:
    """Take a place in the queue. The new ticket is absent."""

    ticket: str
    kind: Kind
    rank: int
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """A holder starts to wait on a ticket."""

    ticket: str
    holder: str


@dataclass(frozen=True, slots=True)
class WaitOver:
    """A wait reached its time limit. Its holder stays present for `poll_grace`."""

    ticket: str
    holder: str


@dataclass(frozen=True, slots=True)
class HangUp:
    """A waiting holder closed its connection. Its presence ends at once."""

    ticket: str
    holder: str


@dataclass(frozen=True, slots=True)
class ConfirmGrant:
    """The holder confirms its grant by its first renew or turn."""

    fence: int


@dataclass(frozen=True, slots=True)
class Release:
    """The holder gives its lease back. The ticket ends."""

    fence: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The holder of a lost lease releases it. The ticket ends unless another holder has waited on it since."""

    ticket: str
    holder: str


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Withdraw the demand (`holder` is None), or end the ticket for its current holder."""

    ticket: str
    holder: str | None = None


@dataclass(frozen=True, slots=True)
class ForceRelease:
    """An operator ends the lease with this fence, held or draining. Each lease can be forced once."""

    fence: int


@dataclass(frozen=True, slots=True)
class AcceptTurn:
    """The holder starts a turn."""

    fence: int
    turn: str


# ---- events: the agent -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TurnClosed:
    """The open turn is closed: it can produce nothing more."""

    turn: str


@dataclass(frozen=True, slots=True)
class TasksChanged:
    """The agent's background tasks started (`running`) or all ended."""

    running: bool


@dataclass(frozen=True, slots=True)
class Reaped:
    """The agent's whole process tree is gone. Nothing is open any more."""


# ---- events: timers --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Due:
    """A timer of `queries.timers` expired."""

    timer: "Timer"


@dataclass(frozen=True, slots=True)
class Timer:
    """A deadline that a state asks for. It runs from the step that first asks for it."""

    name: str
    subject: str


Event = (
    Take | Wait | WaitOver | HangUp | ConfirmGrant | Release | GiveUp | Withdraw | ForceRelease
    | AcceptTurn | TurnClosed | TasksChanged | Reaped | Due
)  # fmt: skip


# ---- effects: what the owner loop does after the step is committed ---------------------------


@dataclass(frozen=True, slots=True)
class Granted:
    """Answer `holder`, which waits on `ticket`. `skipped` tickets were passed over or have lapsed."""

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
    """The ticket ended. Answer the holder that waits on it."""

    ticket: str
    reason: TicketEnd


@dataclass(frozen=True, slots=True)
class Displaced:
    """Another holder's wait superseded this holder."""

    ticket: str
    holder: str


@dataclass(frozen=True, slots=True)
class RecoverNow:
    """An operator forced this drain: stop the agent now."""

    fence: int


Effect = Granted | LeaseOver | TicketOver | Displaced | RecoverNow
Entry = tuple[str, dict[str, Any]]
"""A ledger entry: the event's name and its data."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision: the next state, its ledger entries, and the effects to run after the commit."""

    lock: Lock
    ledger: tuple[Entry, ...] = ()
    effects: tuple[Effect, ...] = ()


# ---- refusals --------------------------------------------------------------------------------


class Refused(Exception):
    """The event is not allowed now. The lock is unchanged. Each subclass maps to one HTTP problem."""


class NoTicket(Refused):
    """No ticket has this id."""


class Superseded(Refused):
    """Another holder's wait has displaced this holder for good (rule 9)."""


class KindMismatch(Refused):
    """The ticket with this key has the other kind."""


class NotHeld(Refused):
    """No lease has this fence. (A force-release also accepts the fence of a drain.)"""


class TurnOpen(Refused):
    """The lease's turn is still open."""


class InvariantBroken(Exception):
    """The step would break an invariant. `name` is the invariant's name in docs/concepts/invariants.md."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"{name}: {detail}")
        self.name = name
