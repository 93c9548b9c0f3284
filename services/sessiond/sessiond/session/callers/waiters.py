"""The callers that wait on tickets, from the arrival of a wait to its one answer. This module decides nothing."""

from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import AsyncResult


class Waiter:
    """One wait on a ticket. The owner loop answers it once."""

    def __init__(self, ticket: str, holder: str, leave: Callable[["Waiter", bool], None]) -> None:
        """`leave(waiter, hung_up)` asks the loop to end the wait; it must not block."""
        self.ticket = ticket
        self.holder = holder
        self._leave = leave
        self._reply: AsyncResult[dict[str, Any]] = AsyncResult()

    def answer(self, seconds: float) -> dict[str, Any]:
        """Return the body of the wait's answer, after at most about `seconds`.

        Raises:
            Problem: the wait was refused.
        """
        try:
            return self._result(seconds)
        except gevent.Timeout:
            # The loop may grant the ticket at this very moment, so only the loop ends the wait.
            self._leave(self, False)
            return self._result(None)

    def _result(self, seconds: float | None) -> dict[str, Any]:
        body = self._reply.get(timeout=seconds)
        return {} if body is None else body

    def hang_up(self) -> None:
        """End the wait of a caller that disconnected. Never blocks; the hub may call it, also twice."""
        if not self.answered:
            self._leave(self, True)

    @property
    def answered(self) -> bool:
        """Whether the wait has its answer."""
        return self._reply.ready()

    def reply(self, body: dict[str, Any]) -> None:
        """Answer the wait; a second answer is dropped."""
        if not self.answered:
            self._reply.set(body)

    def refuse(self, problem: Exception) -> None:
        """Answer the wait with an error; a second answer is dropped."""
        if not self.answered:
            self._reply.set_exception(problem)


class Waiters:
    """The registered waiters of one session, at most one a ticket. Only the owner loop uses it."""

    def __init__(self) -> None:
        self._waiters: dict[str, Waiter] = {}

    def has(self, ticket: str) -> bool:
        """Return whether a waiter is registered on the ticket."""
        return ticket in self._waiters

    def add(self, waiter: Waiter) -> Waiter | None:
        """Register the waiter. Returns the one it replaced, which the caller must answer."""
        before = self._waiters.get(waiter.ticket)
        self._waiters[waiter.ticket] = waiter
        return before

    def remove(self, waiter: Waiter) -> bool:
        """Remove the waiter. Returns False if it is not registered."""
        if self._waiters.get(waiter.ticket) is not waiter:
            return False
        del self._waiters[waiter.ticket]
        return True

    def reply(self, ticket: str, body: dict[str, Any]) -> None:
        """Remove the ticket's waiter and answer it."""
        if waiter := self._waiters.pop(ticket, None):
            waiter.reply(body)

    def refuse(self, ticket: str, problem: Exception) -> None:
        """Remove the ticket's waiter and answer it with an error."""
        if waiter := self._waiters.pop(ticket, None):
            waiter.refuse(problem)

    def refuse_all(self, problem: Exception) -> None:
        """Remove all waiters and answer them with an error."""
        for waiter in self._waiters.values():
            waiter.refuse(problem)
        self._waiters.clear()
