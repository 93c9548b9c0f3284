"""Registers, replaces and ends the waits on tickets, inside the owner loop."""

from sessiond.problems import ended, no_ticket, superseded
from sessiond.session import views
from sessiond.session.callers.turns import Turns
from sessiond.session.callers.waiters import Waiter, Waiters
from sessiond.session.state import SessionState


class TicketWaits:
    """One session's waits. Other greenlets than the owner loop may only call `require`."""

    def __init__(self, state: SessionState, waiters: Waiters, turns: Turns) -> None:
        self._state, self._waiters, self._turns = state, waiters, turns

    def require(self, ticket: str) -> None:
        """Check that a ticket has not ended.

        Raises:
            Problem: `ticket-ended`, `not-found`, `redis-away`.
        """
        if ticket in self._state.lock.tickets:
            return
        found = self._turns.read(f"ended:{ticket}")
        if found is None:
            raise no_ticket()
        raise ended(str(found["reason"]))

    def register(self, waiter: Waiter) -> None:
        """Register a waiter whose wait is committed, and answer the one it replaces.

        A newer wait of the same holder replaces the older one, which is answered `waiting`.
        """
        if waiter.answered:
            return
        before = self._waiters.add(waiter)
        if before is not None and before.holder == waiter.holder:
            before.reply(self._waiting(waiter.ticket))
        elif before is not None:
            before.refuse(superseded())

    def end(self, waiter: Waiter) -> None:
        """Answer a waiter whose wait is over and that is no longer registered."""
        if waiter.ticket in self._state.lock.tickets:
            waiter.reply(self._waiting(waiter.ticket))
        else:
            waiter.refuse(ended("withdrawn"))

    def _waiting(self, ticket: str) -> dict[str, object]:
        lock = self._state.lock
        return views.Queued(lock).waiting(lock.tickets[ticket])
