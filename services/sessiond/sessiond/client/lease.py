"""A lease on the holder's side: renewed in the background, and reported when it is lost."""

import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from sessiond.client.errors import LeaseLost, LeaseSuspended, SessiondError, Unavailable
from sessiond.client.retry import Backoff, now
from sessiond.client.transport import Transport
from sessiond.client.turns import Turn, TurnResult

LEASE_TTL: Final = 30.0
RELEASE_MAX_OUTAGE: Final = 15.0
CONFIRM_MAX_OUTAGE: Final = 15.0
RENEW_TIMEOUT: Final = 8.0
LOSSES: Final = frozenset({"unclaimed", "preempted", "expired", "hold-limit", "forced", "withdrawn"})


@dataclass(frozen=True, slots=True)
class Grant:
    """A granted lease, as the server answered it."""

    session: str
    ticket: str
    fence: int
    secret: str = field(repr=False)
    conversation: Mapping[str, Any]

    @classmethod
    def from_body(cls, session: str, ticket: str, body: Mapping[str, Any]) -> Self:
        """Return the grant of a `granted` answer's `lease` object."""
        return cls(session, ticket, int(body["fence"]), str(body["secret"]), body.get("conversation") or {})


class Lease:
    """The right to run turns on one session. Get it from `Client.lease`.

    `state` is `held`, `suspended` or `lost`. Suspended means that the last confirmed renewal is longer than
    `lease_ttl` ago on this machine's clock, so the lease may be lost. Lost is final; `lost_reason` says why.
    """

    def __init__(
        self,
        transport: Transport,
        grant: Grant,
        *,
        ttl: float = LEASE_TTL,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        self.session = grant.session
        self.ticket = grant.ticket
        self.fence = grant.fence
        self.conversation = grant.conversation
        self.lost = threading.Event()
        self.lost_reason: str | None = None
        self.secret = grant.secret
        self._transport = transport
        self._renew_transport = transport.sibling()
        self._ttl = ttl
        self._on_lost = on_lost
        self._renewed_at = now()
        self._done = threading.Event()
        self._abandoned = False
        self._process = os.getpid()
        self._turn_cut_short = False
        self._thread = threading.Thread(target=self._renew_until_done, name=f"lease-{self.fence}", daemon=True)

    # ---- for the holder ----------------------------------------------------------------------

    @property
    def state(self) -> str:
        """`held`, `suspended` or `lost`."""
        if self.lost.is_set():
            return "lost"
        return "suspended" if now() - self._renewed_at > self._ttl else "held"

    def check(self) -> None:
        """Check that the lease is held.

        Raises:
            LeaseLost: the lease is lost.
            LeaseSuspended: the lease may be lost.
        """
        state = self.state
        if state == "lost":
            raise LeaseLost(self.lost_reason or "unknown")
        if state == "suspended":
            raise LeaseSuspended

    def turn(
        self, prompt: str, *, model: str | None = None, key: str | None = None, timeout: float | None = None
    ) -> Turn:
        """Start one turn. `timeout` is in seconds. With the `key` of a completed turn, its stored result comes at once.

        Raises:
            LeaseLost: the lease is lost.
            Unavailable: the server did not start the turn. Retry later.
            ProblemError: the server refused the request.
        """
        if self.lost.is_set():
            self.check()
        body: dict[str, Any] = {"prompt": prompt, "model": model, "key": key, "timeout": timeout}
        given = {name: value for name, value in body.items() if value is not None}
        try:
            stream = self._transport.stream("POST", "/turns", session=self.session, body=given, secret=self.secret)
        except LeaseLost as lost:
            self._lose(lost.reason)
            raise
        return Turn(self._transport, self.session, stream, self._check_result)

    def cancel_turn(self, turn: str) -> None:
        """Cancel the turn with this id and keep the lease. A closed turn does not change.

        Return when the cancel is decided, not when the turn is closed.

        Raises:
            LeaseLost: the lease is lost.
            Unavailable: the server did not answer.
            ProblemError: the server refused the request.
        """
        self._transport.call("DELETE", f"/turns/{turn}", session=self.session, secret=self.secret)

    def abandon(self) -> None:
        """Let the lease expire after the `with` block instead of releasing it, so that the ticket keeps its place."""
        self._abandoned = True

    # ---- for the client ----------------------------------------------------------------------

    def begin(self) -> None:
        """Confirm the grant and start to renew the lease.

        Raises:
            LeaseLost: the lease is lost already.
            Unavailable: the server was unavailable for too long.
        """
        backoff = Backoff(CONFIRM_MAX_OUTAGE)
        while True:
            try:
                self._renew(self._transport)
                break
            except Unavailable as failure:
                backoff.wait(failure)
        self._thread.start()

    def end(self, failed: bool = False) -> None:
        """Stop renewing and release the lease.

        An abandoned lease is not released, so that its ticket keeps its place. A lost lease is not released either, if
        its loss cut a turn short or the block ended with an exception (`failed`). A process that was forked inside the
        block does nothing, because the lease belongs to its parent.

        Raises:
            Unavailable: the server was unavailable for too long.
        """
        if os.getpid() != self._process:
            return
        self._done.set()
        try:
            if not (self._abandoned or (self.lost.is_set() and (failed or self._turn_cut_short))):
                self._release()
        finally:
            self._renew_transport.close()

    def _release(self) -> None:
        backoff = Backoff(RELEASE_MAX_OUTAGE)
        while True:
            try:
                self._transport.call("DELETE", "/lease", session=self.session, secret=self.secret)
                return
            except LeaseLost as lost:
                self._lose(lost.reason)
                return
            except Unavailable as failure:
                backoff.wait(failure)

    def _renew(self, transport: Transport) -> None:
        sent_at = now()
        transport.call("POST", "/lease/renew", session=self.session, secret=self.secret, timeout=RENEW_TIMEOUT)
        self._renewed_at = sent_at

    def _renew_until_done(self) -> None:
        pause = self._ttl / 3
        while not self._done.wait(pause):
            try:
                self._renew(self._renew_transport)
                pause = self._ttl / 3
            except LeaseLost as lost:
                if not self._done.is_set():  # otherwise it was just released
                    self._lose(lost.reason)
                return
            except SessiondError:
                pause = min(1.0, self._ttl / 10)

    def _lose(self, reason: str) -> None:
        if not self.lost.is_set():
            self.lost_reason = reason
            self.lost.set()
            if self._on_lost is not None:
                with contextlib.suppress(Exception):
                    self._on_lost(reason)

    def _check_result(self, result: TurnResult) -> None:
        """Record the loss of the lease if the turn's result is the first to report it."""
        if result.outcome in ("cancelled", "lost") and result.reason in LOSSES:
            self._turn_cut_short = True
            self._lose(result.reason)
