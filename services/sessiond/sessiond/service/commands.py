"""The calls of an owned session for HTTP. Each call that changes it sends one command to the owner loop.

All methods raise problems.Problem.
"""

import uuid
from typing import Any

from sessiond.lock.rules import Kind, rank_of
from sessiond.service.queries import SessionQueries
from sessiond.session import commands as co
from sessiond.session.callers.turn_stream import TurnStream
from sessiond.session.callers.waiters import Waiter
from sessiond.session.commands import TurnRequest
from sessiond.session.fault_points import BEFORE_TURN, hold
from sessiond.session.loop import Session

__all__ = ["SessionCommands", "TurnRequest"]


class SessionCommands(SessionQueries):
    """The queries and the changes of one session."""

    def __init__(self, session: Session) -> None:
        super().__init__(session.reader)
        self._session = session

    # ---- tickets -----------------------------------------------------------------------------

    def take(self, kind: Kind, priority: int, key: str | None) -> tuple[dict[str, Any], bool]:
        """Take a place in the queue. Returns the ticket's view, and whether it is new."""
        ticket = f"tk-{uuid.uuid4().hex}"
        return self._session.ask(co.TakeTicket(ticket, kind, rank_of(kind, priority), key))

    def wait(self, ticket: str, holder: str) -> Waiter:
        """Make `holder` present on the ticket. The returned waiter gets the answer."""
        return self._session.wait(ticket, holder)

    def withdraw(self, ticket: str, holder: str | None) -> None:
        """End a ticket. Without a holder, the demand is withdrawn; with one, the current holder gives the ticket up."""
        self._session.ask(co.WithdrawTicket(ticket, holder))

    # ---- the lease ---------------------------------------------------------------------------

    def renew(self, secret: str) -> dict[str, Any]:
        """Renew the lease for its full ttl. Returns `{expires_at}`."""
        return self._session.ask(co.RenewLease(secret))

    def release(self, secret: str) -> None:
        """End the lease. With a lost lease's secret, the ticket ends unless another holder waits on it."""
        self._session.ask(co.ReleaseLease(secret))

    def force_release(self, fence: int, reason: str, by: str) -> None:
        """End the lease with this fence. It never ends the next holder's lease."""
        self._session.ask(co.ForceRelease(fence, reason, by))

    # ---- turns -------------------------------------------------------------------------------

    def start_turn(self, secret: str, request: TurnRequest) -> TurnStream:
        """Start a turn of the lease's holder. Returns its events; `turn` is the turn's id."""
        hold(self._session.settings.hooks_dir, BEFORE_TURN)
        return self._session.ask(co.StartTurn(secret, request))

    def cancel_turn(self, turn: str, secret: str | None) -> None:
        """End a turn and keep the lease. A closed turn does not change. Without a secret, an operator asks."""
        self._session.ask(co.CancelTurn(turn, secret))

    # ---- the agent ---------------------------------------------------------------------------

    def restart_agent(self, by: str) -> None:
        """Stop the agent, and end the state `broken`. The next turn resumes the conversation."""
        self._session.ask(co.RestartAgent(by))

    def new_conversation(self, by: str) -> dict[str, Any]:
        """Begin a new conversation with the next turn. Refused (`turn-open`) while a turn is open."""
        return self._session.ask(co.NewConversation(by))
