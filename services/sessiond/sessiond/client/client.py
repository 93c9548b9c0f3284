"""The client: leases and calls of one sessiond."""

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, TypedDict, Unpack

import orjson

from sessiond.client.errors import NestedSessions, SessiondError, Superseded, TicketEnded, Unavailable
from sessiond.client.lease import LEASE_TTL, Grant, Lease
from sessiond.client.retry import Backoff, now
from sessiond.client.transport import Transport, session_name

DEFAULT_URL: Final = "http://127.0.0.1:8420"
LONG_WAIT: Final = 240.0
"""Seconds of one wait call. It is long because a new call costs the server more than a waiting one."""
MAX_OUTAGE: Final = 600.0
"""A wait for a lease fails when the server has been unavailable for this many seconds without a break."""


class LeaseOptions(TypedDict, total=False):
    """The keyword arguments of `Client.lease`. All are optional."""

    kind: str
    """`handler` (the default) or `worker`."""
    priority: int | None
    """0 (most urgent) to 9, for handlers. The server's default is 5."""
    key: str | None
    """Identifies the demand. The same key gives the same ticket as long as that ticket has not ended."""
    timeout: float | None
    """Seconds to wait for the lease. None waits without a limit."""
    holder: str | None
    """Names this run. By default it is the client's holder, or a new name."""
    lease_ttl: float
    """The server's `lease_ttl` in seconds."""
    on_position: Callable[[Mapping[str, Any]], None] | None
    """Gets the body of each `waiting` answer."""
    on_lost: Callable[[str], None] | None
    """Gets the reason when the lease is lost, in another thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _LeaseRequest:
    """A call of `Client.lease`: the options with their defaults."""

    session: str
    kind: str = "handler"
    priority: int | None = None
    key: str | None = None
    timeout: float | None = None
    holder: str | None = None
    lease_ttl: float = LEASE_TTL
    on_position: Callable[[Mapping[str, Any]], None] | None = None
    on_lost: Callable[[str], None] | None = None


@dataclass(slots=True)
class _Held:
    """The lease that this context holds, and how many `with` blocks of it are open."""

    lease: Lease
    depth: int = 1


_HELD: ContextVar[_Held | None] = ContextVar("sessiond_lease", default=None)


def new_holder() -> str:
    """Return a new name for a run: host, pid, random."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


class Client:
    """Calls one sessiond. Threads may share a client."""

    def __init__(self, url: str, key: str | None, holder: str | None = None) -> None:
        self.transport = Transport(url, key)
        self._holder = holder

    # ---- leases ------------------------------------------------------------------------------

    @contextmanager
    def lease(self, session: str, **options: Unpack[LeaseOptions]) -> Iterator[Lease]:
        """Wait for the lease, yield it confirmed and renewed, and release it at the end, also after an exception.

        A lost lease is not released if its loss cut a turn short (a preempted worker). Its ticket keeps its place,
        and another call with the same `key` continues from there.

        If the wait fails or times out, a ticket without a `key` is given up; one with a `key` keeps its place.

        See `LeaseOptions` for the options.

        Raises:
            Timeout: the lease was not granted within `timeout`.
            Superseded: another run waits on this ticket.
            TicketEnded: the ticket has ended.
            Unavailable: the server was unavailable for too long.
            NestedSessions: this context holds the lease of another session.
            BadName: the session's name is malformed.
            ProblemError: the server refused the request.
        """
        request = _LeaseRequest(session=session_name(session), **options)
        outer = _outer(request.session)
        if outer is not None:
            outer.depth += 1
            try:
                yield outer.lease
            finally:
                outer.depth -= 1
            return
        lease = self._acquire(request)
        held = _Held(lease)
        token = _HELD.set(held)
        failed = True
        try:
            yield lease
            failed = False
        finally:
            held.depth = 0
            with suppress(ValueError):  # a generator may be closed in another context
                _HELD.reset(token)
            lease.end(failed)

    def _acquire(self, request: _LeaseRequest) -> Lease:
        deadline = None if request.timeout is None else now() + request.timeout
        ticket = self.take(
            request.session, kind=request.kind, priority=request.priority, key=request.key,
            patience=MAX_OUTAGE, deadline=deadline,
        )["id"]  # fmt: skip
        holder = request.holder or self._holder or new_holder()
        try:
            body = self._await_grant(request, ticket, holder, deadline)
            grant = Grant.from_body(request.session, ticket, body)
            lease = Lease(self.transport, grant, ttl=request.lease_ttl, on_lost=request.on_lost)
            lease.begin()
        except (Superseded, TicketEnded):
            raise
        except BaseException:
            if request.key is None:
                self._give_up(request.session, ticket, holder)
            raise
        return lease

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
        """Take a place in the queue without waiting on it. Return the ticket.

        The same `key` gives the same ticket. An attempt without a key is not repeated if its answer was lost,
        because it may have taken a place. `patience` is the time in seconds for which the server may be
        unavailable without a break; `deadline` is a time on `now()`.

        Raises:
            Timeout: the deadline has passed.
            Unavailable: the server was unavailable for too long.
            BadName: the session's name is malformed.
            ProblemError: the server refused the request.
        """
        body = {"kind": kind, "priority": priority, "key": key}
        backoff = Backoff(patience, deadline)
        while True:
            try:
                answer = self.transport.call("POST", "/tickets", session=session_name(session), body=body)
                return dict(answer.body)
            except Unavailable as failure:
                if key is None and failure.status is None and failure.sent:
                    raise
                backoff.wait(failure)

    def _await_grant(
        self, request: _LeaseRequest, ticket: str, holder: str, deadline: float | None
    ) -> Mapping[str, Any]:
        backoff = Backoff(MAX_OUTAGE, deadline)
        path = f"/tickets/{ticket}/wait"
        while True:
            left = backoff.left()
            seconds = LONG_WAIT if left is None else min(LONG_WAIT, left)
            body = {"holder": holder, "wait": seconds}
            try:
                answer = self.transport.call(
                    "POST", path, session=request.session, body=body, timeout=seconds + 10
                ).body
            except Unavailable as failure:
                backoff.wait(failure)
                continue
            backoff.reset()
            if answer["state"] == "granted":
                lease: Mapping[str, Any] = answer["lease"]
                return lease
            if request.on_position is not None:
                request.on_position(answer)

    def _give_up(self, name: str, ticket: str, holder: str) -> None:
        try:
            self.transport.call("DELETE", f"/tickets/{ticket}", session=name, body={"holder": holder})
        except SessiondError:
            return

    # ---- plain calls -------------------------------------------------------------------------

    def withdraw(self, session: str, ticket: str, holder: str | None = None) -> None:
        """Withdraw the demand. With a `holder`, only the ticket's current holder may do so."""
        body = {"holder": holder}
        self.transport.call("DELETE", f"/tickets/{ticket}", session=session_name(session), body=body)

    def ticket(self, session: str, ticket: str) -> dict[str, Any]:
        """Return one ticket."""
        return dict(self.transport.call("GET", f"/tickets/{ticket}", session=session_name(session)).body)

    def sessions(self) -> list[dict[str, Any]]:
        """Return the view of every session that the instance owns."""
        return list(self.transport.call("GET", "/sessions").body["sessions"])

    def view(self, session: str) -> dict[str, Any]:
        """Return a session's holder, its queue in order with reasons, and its agent's state."""
        return dict(self.transport.call("GET", "", session=session_name(session)).body)

    def ledger(self, session: str, after: str | None = None, *, wait: float = 0.0) -> list[dict[str, Any]]:
        """Return the ledger entries after the id `after`. Wait up to `wait` seconds (at most 60) for the first."""
        query = {"after": after, "wait": wait or None, "count": 5000}
        answer = self.transport.call("GET", "/ledger", session=session_name(session), query=query, timeout=15 + wait)
        return list(answer.body["entries"])

    def follow_ledger(self, session: str, after: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield ledger entries as they are appended, without end. Reconnect when the stream breaks."""
        backoff = Backoff(MAX_OUTAGE)
        while True:
            try:
                stream = self.transport.stream("GET", "/ledger", session=session_name(session), query={"after": after})
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
        """Return the record of a turn."""
        return dict(self.transport.call("GET", f"/turns/{turn}", session=session_name(session)).body)

    def turn_by_key(self, session: str, key: str) -> dict[str, Any]:
        """Return the record of the last attempt under this key."""
        return dict(self.transport.call("GET", "/turns", session=session_name(session), query={"key": key}).body)

    def force_release(self, session: str, fence: int, reason: str) -> None:
        """End the lease with this fence. Requires the role admin."""
        body = {"fence": fence, "reason": reason}
        self.transport.call("POST", "/force-release", session=session_name(session), body=body)

    def restart_agent(self, session: str) -> None:
        """Stop the agent. The next turn resumes the conversation. Requires the role admin."""
        self.transport.call("POST", "/agent/restart", session=session_name(session), body={})

    def new_conversation(self, session: str) -> dict[str, Any]:
        """Begin a new conversation. Requires the role admin."""
        return dict(self.transport.call("POST", "/conversation", session=session_name(session), body={}).body)

    def close(self) -> None:
        """Close the connections."""
        self.transport.close()


def _outer(session: str) -> _Held | None:
    """Return the lease that this context holds already, if any.

    Raises:
        NestedSessions: it is the lease of another session.
    """
    held = _HELD.get()
    if held is None or not held.depth:  # depth 0: its block was left in another context
        return None
    if held.lease.session != session:
        raise NestedSessions(f"cannot take the lease of {session} inside the lease of {held.lease.session}")
    return held


def connect(url: str | None = None, key: str | None = None, holder: str | None = None) -> Client:
    """Return a client.

    `url` and `key` default to SESSIOND_URL (or port 8420 of this machine) and SESSIOND_KEY. `holder` names this run
    on every ticket; by default each lease has a holder of its own.

    Raises:
        BadName: the URL is malformed.
    """
    return Client(url or os.environ.get("SESSIOND_URL") or DEFAULT_URL, key or os.environ.get("SESSIOND_KEY"), holder)
