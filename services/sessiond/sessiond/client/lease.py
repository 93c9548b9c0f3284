"""A lease as its holder has it: renewed in the background, told at once when it is lost."""

import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from sessiond.client.errors import LeaseLost, LeaseSuspended, SessiondError, Unavailable
from sessiond.client.patience import Backoff, now
from sessiond.client.transport import Transport
from sessiond.client.turns import Turn, TurnResult

LEASE_TTL: Final = 30.0
RELEASE_PATIENCE: Final = 15.0
CLAIM_PATIENCE: Final = 15.0
RENEW_TIMEOUT: Final = 8.0
LOSSES: Final = frozenset({"unclaimed", "preempted", "expired", "hold-limit", "forced", "withdrawn"})


class Lease:
    """The right to run turns on one session. Made by `Client.lease`; do not make your own.

    `state` is `held`, `suspended` (this process's own clock says that the last sure renewal is a
    `lease_ttl` ago: nobody can tell) or `lost` (for good; `lost_reason` says why).
    """

    def __init__(
        self,
        transport: Transport,
        session: str,
        ticket: str,
        granted: Mapping[str, Any],
        *,
        ttl: float = LEASE_TTL,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        self.session = session
        self.ticket = ticket
        self.fence = int(granted["fence"])
        self.conversation: Mapping[str, Any] = granted.get("conversation") or {}
        self.lost = threading.Event()
        self.lost_reason: str | None = None
        self._secret = str(granted["secret"])
        self._transport = transport
        self._own = transport.sibling()
        self._ttl = ttl
        self._on_lost = on_lost
        self._sure = now()
        self._done = threading.Event()
        self._abandoned = False
        self._process = os.getpid()
        self._cut = False
        self._thread = threading.Thread(target=self._renew_for_ever, name=f"lease-{self.fence}", daemon=True)

    # ---- for the holder ----------------------------------------------------------------------

    @property
    def state(self) -> str:
        """held, suspended or lost."""
        if self.lost.is_set():
            return "lost"
        return "suspended" if now() - self._sure > self._ttl else "held"

    def check(self) -> None:
        """Raises LeaseLost or LeaseSuspended unless the lease surely is held."""
        state = self.state
        if state == "lost":
            raise LeaseLost(self.lost_reason or "unknown")
        if state == "suspended":
            raise LeaseSuspended

    def turn(
        self, prompt: str, *, model: str | None = None, key: str | None = None, timeout: float | None = None
    ) -> Turn:
        """Starts one turn. `timeout` in seconds; with a `key` a completed turn's stored result comes at once.

        Raises LeaseLost, Unavailable (nothing was sent to the agent: ask again), ProblemError.
        """
        if self.lost.is_set():
            self.check()
        body: dict[str, Any] = {"prompt": prompt, "model": model, "key": key, "timeout": timeout}
        given = {name: value for name, value in body.items() if value is not None}
        try:
            stream = self._transport.stream("POST", "/turns", session=self.session, body=given, secret=self._secret)
        except LeaseLost as lost:
            self._lose(lost.reason)
            raise
        return Turn(self._transport, self.session, stream, self._told)

    def cancel_turn(self, turn: str) -> None:
        """Cancels the turn with this id and keeps the lease; a closed turn is left as it is.

        Returns when the cancel is decided, not when the turn is closed. Raises LeaseLost, Unavailable, ProblemError.
        """
        self._transport.call("DELETE", f"/turns/{turn}", session=self.session, secret=self._secret)

    def abandon(self) -> None:
        """The lease is left to expire on leaving the `with` block, so that the ticket keeps its place."""
        self._abandoned = True

    # ---- for the client ----------------------------------------------------------------------

    def begin(self) -> None:
        """Claims the grant and goes on renewing. Raises LeaseLost, Unavailable."""
        backoff = Backoff(CLAIM_PATIENCE)
        while True:
            try:
                self._renew(self._transport)
                break
            except Unavailable as failure:
                backoff.wait(failure)
        self._thread.start()

    def end(self, failed: bool = False) -> None:
        """Stops renewing and gives the lease back. Raises Unavailable.

        Not given back, so that the ticket keeps its place: what was abandoned, and a lost lease whose
        loss cut a turn short or broke the block off (`failed`). Nor by a process that was forked inside the block: it
        is the parent's.
        """
        if os.getpid() != self._process:
            return
        self._done.set()
        try:
            if not (self._abandoned or (self.lost.is_set() and (failed or self._cut))):
                self._release()
        finally:
            self._own.close()

    def _release(self) -> None:
        backoff = Backoff(RELEASE_PATIENCE)
        while True:
            try:
                self._transport.call("DELETE", "/lease", session=self.session, secret=self._secret)
                return
            except LeaseLost as lost:
                self._lose(lost.reason)
                return
            except Unavailable as failure:
                backoff.wait(failure)

    def _renew(self, transport: Transport) -> None:
        asked = now()
        transport.call("POST", "/lease/renew", session=self.session, secret=self._secret, timeout=RENEW_TIMEOUT)
        self._sure = asked

    def _renew_for_ever(self) -> None:
        pause = self._ttl / 3
        while not self._done.wait(pause):
            try:
                self._renew(self._own)
                pause = self._ttl / 3
            except LeaseLost as lost:
                if not self._done.is_set():  # else it was given back meanwhile
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

    def _told(self, result: TurnResult) -> None:
        """A turn's end may be the first news of the lease's."""
        if result.outcome in ("cancelled", "lost") and result.reason in LOSSES:
            self._cut = True
            self._lose(result.reason)
