"""The one door for callers of sessiond.

    client = connect()                                   # SESSIOND_URL, SESSIOND_KEY
    with client.lease("octo/hello", kind="handler", key="IC_kwDO1") as lease:
        for event in lease.turn("What does this do?"):
            ...
        # or: lease.turn("…").result().text

Light: needs urllib3 and orjson only. The lease claims and renews itself in the background. Inside
the block, `client.lease` of the same session is the same lease; another session's raises.
"""

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import orjson

from sessiond.client.errors import (
    BadName,
    LeaseLost,
    LeaseSuspended,
    NestedSessions,
    NotOwner,
    ProblemError,
    SessiondError,
    Superseded,
    TicketEnded,
    Timeout,
    Unavailable,
)
from sessiond.client.lease import LEASE_TTL, Lease
from sessiond.client.patience import Backoff, now
from sessiond.client.transport import Transport, session_name
from sessiond.client.turns import AgentEvent, Event, Gap, Turn, TurnResult

DEFAULT_URL: Final = "http://127.0.0.1:8420"
LONG_WAIT: Final = 240.0
"""Seconds one wait asks for; long, because asking again costs the server more than a parked wait."""
PATIENCE: Final = 600.0
"""Seconds that the server may be away in one piece while a lease is waited for."""


@dataclass(slots=True)
class _Held:
    lease: Lease
    depth: int = 1


_HELD: ContextVar[_Held | None] = ContextVar("sessiond_lease", default=None)


def new_holder() -> str:
    """Names one run: host, pid, random."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


class Client:
    """Calls on one sessiond. Threads may share it."""

    def __init__(self, url: str, key: str | None, holder: str | None = None) -> None:
        self._transport = Transport(url, key)
        self._holder = holder

    # ---- leases ------------------------------------------------------------------------------

    @contextmanager
    def lease(
        self,
        session: str,
        *,
        kind: str = "handler",
        priority: int | None = None,
        key: str | None = None,
        timeout: float | None = None,
        holder: str | None = None,
        lease_ttl: float = LEASE_TTL,
        on_position: Callable[[Mapping[str, Any]], None] | None = None,
        on_lost: Callable[[str], None] | None = None,
    ) -> Iterator[Lease]:
        """Waits for the lease, yields it claimed and renewed, releases it at the end (also on an exception).

        A lease that was lost and whose loss cut a turn short (a preempted worker) is not released: the ticket
        keeps its place, and asking again with the same `key` goes on from there.

        `timeout` in seconds bounds the waiting; then, and when the waiting is broken off otherwise, the
        place is given up unless it has a `key`. `on_position` gets each `waiting` answer, `on_lost` the
        reason, from another thread. `lease_ttl` must be the server's.

        Raises Timeout, Superseded, TicketEnded, Unavailable, NestedSessions, BadName, ProblemError.
        """
        name = session_name(session)
        held = _HELD.get()
        if held is not None and not held.depth:  # its block was left in another context
            held = None
        if held is not None and held.lease.session != name:
            raise NestedSessions(f"{name} inside the lease of {held.lease.session}")
        if held is not None:
            held.depth += 1
            try:
                yield held.lease
            finally:
                held.depth -= 1
            return
        deadline = None if timeout is None else now() + timeout
        ticket = self.take(name, kind=kind, priority=priority, key=key, patience=PATIENCE, deadline=deadline)["id"]
        who = holder or self._holder or new_holder()
        try:
            granted = self._granted(name, ticket, who, deadline, on_position)
            lease = Lease(self._transport, name, ticket, granted, ttl=lease_ttl, on_lost=on_lost)
            lease.begin()
        except (Superseded, TicketEnded):
            raise
        except BaseException:
            if key is None:
                self._give_up(name, ticket, who)
            raise
        mine = _Held(lease)
        token = _HELD.set(mine)
        failed = True
        try:
            yield lease
            failed = False
        finally:
            mine.depth = 0
            with suppress(ValueError):  # a generator may be closed in another context
                _HELD.reset(token)
            lease.end(failed)

    def take(
        self,
        session: str,
        *,
        kind: str = "handler",
        priority: int | None = None,
        key: str | None = None,
        patience: float = 0.0,
        deadline: float | None = None,
    ) -> dict[str, Any]:
        """A place in the queue, without waiting on it: the ticket. The same `key` gives the same ticket.

        Without a key an attempt whose answer was lost is not repeated, because it may have taken a place.
        """
        body = {"kind": kind, "priority": priority, "key": key}
        backoff = Backoff(patience, deadline)
        while True:
            try:
                answer = self._transport.call("POST", "/tickets", session=session_name(session), body=body)
                return dict(answer.body)
            except Unavailable as failure:
                if key is None and failure.status is None and failure.sent:
                    raise
                backoff.wait(failure)

    def _granted(
        self,
        name: str,
        ticket: str,
        holder: str,
        deadline: float | None,
        on_position: Callable[[Mapping[str, Any]], None] | None,
    ) -> Mapping[str, Any]:
        backoff = Backoff(PATIENCE, deadline)
        while True:
            left = backoff.left()
            seconds = LONG_WAIT if left is None else min(LONG_WAIT, left)
            body = {"holder": holder, "wait": 0.0 if on_position and seconds is None else seconds}
            try:
                answer = self._transport.call(
                    "POST", f"/tickets/{ticket}/wait", session=name, body=body, timeout=seconds + 10
                ).body
            except Unavailable as failure:
                backoff.wait(failure)
                continue
            backoff.reset()
            if answer["state"] == "granted":
                lease: Mapping[str, Any] = answer["lease"]
                return lease
            if on_position is not None:
                on_position(answer)

    def _give_up(self, name: str, ticket: str, holder: str) -> None:
        try:
            self._transport.call("DELETE", f"/tickets/{ticket}", session=name, body={"holder": holder})
        except SessiondError:
            return

    # ---- plain calls -------------------------------------------------------------------------

    def withdraw(self, session: str, ticket: str, holder: str | None = None) -> None:
        """The demand is gone; with a `holder` only the current one's counts."""
        body = {"holder": holder}
        self._transport.call("DELETE", f"/tickets/{ticket}", session=session_name(session), body=body)

    def ticket(self, session: str, ticket: str) -> dict[str, Any]:
        """One ticket."""
        return dict(self._transport.call("GET", f"/tickets/{ticket}", session=session_name(session)).body)

    def sessions(self) -> list[dict[str, Any]]:
        """The view of every session that the instance owns."""
        return list(self._transport.call("GET", "/sessions").body["sessions"])

    def view(self, session: str) -> dict[str, Any]:
        """Holder, queue in order with why, the agent's state."""
        return dict(self._transport.call("GET", "", session=session_name(session)).body)

    def ledger(self, session: str, after: str | None = None, *, wait: float = 0.0) -> list[dict[str, Any]]:
        """Entries behind the id `after`; `wait` seconds (up to 60) for the first."""
        query = {"after": after, "wait": wait or None, "count": 5000}
        answer = self._transport.call("GET", "/ledger", session=session_name(session), query=query, timeout=15 + wait)
        return list(answer.body["entries"])

    def follow_ledger(self, session: str, after: str | None = None) -> Iterator[dict[str, Any]]:
        """Entries as they come, for ever; reconnects."""
        backoff = Backoff(PATIENCE)
        while True:
            try:
                stream = self._transport.stream("GET", "/ledger", session=session_name(session), query={"after": after})
                for event in stream:
                    backoff.reset()
                    if event is not None and event.event == "entry":
                        entry = orjson.loads(event.data)
                        after = entry["id"]
                        yield entry
            except Unavailable as failure:
                backoff.wait(failure)
            else:
                time.sleep(0.2)

    def turn(self, session: str, turn: str) -> dict[str, Any]:
        """What became of a turn."""
        return dict(self._transport.call("GET", f"/turns/{turn}", session=session_name(session)).body)

    def turn_by_key(self, session: str, key: str) -> dict[str, Any]:
        """The last attempt under this key."""
        return dict(self._transport.call("GET", "/turns", session=session_name(session), query={"key": key}).body)

    def force_release(self, session: str, fence: int, reason: str) -> None:
        """Ends the lease with this fence (role admin)."""
        body = {"fence": fence, "reason": reason}
        self._transport.call("POST", "/force-release", session=session_name(session), body=body)

    def restart_agent(self, session: str) -> None:
        """Stops the agent; the next turn resumes the conversation (role admin)."""
        self._transport.call("POST", "/agent/restart", session=session_name(session), body={})

    def new_conversation(self, session: str) -> dict[str, Any]:
        """Begins a fresh conversation (role admin)."""
        return dict(self._transport.call("POST", "/conversation", session=session_name(session), body={}).body)

    def close(self) -> None:
        """Closes the connections."""
        self._transport.close()


def connect(url: str | None = None, key: str | None = None, holder: str | None = None) -> Client:
    """A client. `url` and `key` default to SESSIOND_URL (else this machine's port 8420) and SESSIOND_KEY.

    `holder` names this run on every ticket; by default each lease makes its own. Raises BadName for a bad url.
    """
    return Client(url or os.environ.get("SESSIOND_URL") or DEFAULT_URL, key or os.environ.get("SESSIOND_KEY"), holder)


__all__ = [
    "AgentEvent", "BadName", "Client", "Event", "Gap", "Lease", "LeaseLost", "LeaseSuspended", "NestedSessions",
    "NotOwner", "ProblemError", "SessiondError", "Superseded", "TicketEnded", "Timeout", "Turn", "TurnResult",
    "Unavailable", "connect", "new_holder",
]  # fmt: skip
