"""The commands of a session, which requests and other parts of the service send to the owner loop.

Each command names the type of its reply. `handlers.dispatch` has one handler for each.
"""

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from sessiond.lock.rules import Kind
from sessiond.session.callers.turn_stream import TurnStream
from sessiond.session.callers.waiters import Waiter

R = TypeVar("R")


class Command(Generic[R]):
    """One command, to which the owner loop replies with an `R`. Values are frozen."""

    __slots__ = ()

    @property
    def patient(self) -> bool:
        """Whether the caller waits for the real reply until Redis is back.

        A caller that is not patient gets `redis-away` at once and asks again. A command that must not run twice must
        be patient, because the first step may have been committed.
        """
        return False


# ---- tickets ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TakeTicket(Command[tuple[dict[str, Any], bool]]):
    """Take a place in the queue. Replies with the ticket's view, and whether it is new."""

    ticket: str
    """The id for a new ticket."""
    kind: Kind
    rank: int
    key: str | None


@dataclass(frozen=True, slots=True)
class WaiterCommand(Command[None]):
    """A command about a waiter. If the command is refused, the waiter is refused too."""

    waiter: Waiter


@dataclass(frozen=True, slots=True)
class WaitTicket(WaiterCommand):
    """Make the waiter's holder present on its ticket. The answer goes to the waiter."""


@dataclass(frozen=True, slots=True)
class LeaveTicket(WaiterCommand):
    """End a wait: its time is over, or its caller hung up."""

    hung_up: bool


@dataclass(frozen=True, slots=True)
class WithdrawTicket(Command[None]):
    """End a ticket. Without a holder, the demand is withdrawn; with one, the current holder gives the ticket up."""

    ticket: str
    holder: str | None


# ---- the lease -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RenewLease(Command[dict[str, Any]]):
    """Renew the lease for its full ttl. Replies with `{expires_at}`."""

    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ReleaseLease(Command[None]):
    """End the lease and its ticket. With a lost lease's secret, the ticket ends unless another holder waits on it."""

    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ForceRelease(Command[None]):
    """End the lease with this fence, as an operator."""

    fence: int
    reason: str
    by: str


# ---- turns -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """One prompt. `timeout` in seconds, None for no limit of its own; `raw` sends the prompt uncomposed."""

    prompt: str = field(repr=False)
    model: str | None = None
    key: str | None = None
    timeout: float | None = None
    raw: bool = False


@dataclass(frozen=True, slots=True)
class StartTurn(Command[TurnStream]):
    """Start a turn of the lease's holder. Replies with its events."""

    secret: str = field(repr=False)
    request: TurnRequest

    @property
    def patient(self) -> bool:
        """A second request without a key would run the turn twice, so the caller must wait."""
        return self.request.key is None


@dataclass(frozen=True, slots=True)
class CancelTurn(Command[None]):
    """End a turn and keep the lease. Without a secret, an operator asks."""

    turn: str
    secret: str | None = field(repr=False)


# ---- the agent -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RestartAgent(Command[None]):
    """Stop the agent, and end the state `broken`. The next turn resumes the conversation."""

    by: str


@dataclass(frozen=True, slots=True)
class NewConversation(Command[dict[str, Any]]):
    """Begin a new conversation with the next turn. Replies with the conversation."""

    by: str


@dataclass(frozen=True, slots=True)
class SleepAgent(Command[None]):
    """Stop the agent if it is idle, because another session needs its slot."""


@dataclass(frozen=True, slots=True)
class AnswerQuestion(Command[None]):
    """Answer the agent's permission request with this id."""

    request: str
