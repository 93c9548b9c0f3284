"""What can go wrong, as the caller sees it. Every exception of this package is a `SessiondError`."""

from collections.abc import Mapping
from typing import Any


class SessiondError(Exception):
    """Base of everything that `sessiond.client` raises on its own account."""


class BadName(SessiondError, ValueError):
    """A session name that is not `owner/repo`, or an argument no server would take."""


class NestedSessions(SessiondError):
    """A lease of a second session was asked for inside the lease of another.

    Two holders that take two sessions in different orders would wait for each other for ever.
    """


class Timeout(SessiondError, TimeoutError):
    """The lease was not granted within the `timeout` the caller gave."""


class ProblemError(SessiondError):
    """The server refused the request (RFC 9457).

    `type` is the stable slug (`bad-request`, `turn-open`, …), `status` the HTTP status, `detail` one
    sentence for people, `extra` the problem's other members.
    """

    def __init__(self, type: str, status: int, detail: str, extra: Mapping[str, Any] | None = None) -> None:
        super().__init__(f"{type}: {detail}" if detail else type)
        self.type = type
        self.status = status
        self.detail = detail
        self.extra: Mapping[str, Any] = dict(extra or {})


class Superseded(ProblemError):
    """Another run waits on this ticket, or did: this one has lost it for good."""

    def __init__(self, detail: str = "another run has taken this ticket over") -> None:
        super().__init__("superseded", 409, detail)


class TicketEnded(ProblemError):
    """The ticket is over: `reason` is released, withdrawn, hold-limit, forced, lost-thrice or too-old."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__("ticket-ended", 410, detail or f"the ticket has ended: {reason}", {"reason": reason})
        self.reason = reason


class LeaseLost(ProblemError):
    """The lease is gone: `reason` is unclaimed, preempted, expired, hold-limit, forced or withdrawn.

    `released` is the reason when the caller itself gave it back, `unknown` when the service knows of no such lease
    (403: lost longer ago than it remembers, or Redis came back from before the grant).
    """

    def __init__(self, reason: str, detail: str = "", status: int = 409) -> None:
        super().__init__("lease-lost", status, detail or f"the lease is lost: {reason}", {"reason": reason})
        self.reason = reason


class LeaseSuspended(SessiondError):
    """Nobody can tell whether the lease still stands: its last sure renewal is a `lease_ttl` ago."""

    def __init__(self) -> None:
        super().__init__("the lease could not be renewed in time; whether it still stands is not known")


class Unavailable(SessiondError):
    """No answer, or a 503.

    `type` is the problem's slug (`redis-away`, `stopping`, `agent-broken`, …) or `unreachable` when
    nothing answered; `status` is None then. `retry_after` is in seconds, where the server named a time.
    `sent` is False when the request surely never reached a server.
    """

    def __init__(
        self,
        type: str,
        detail: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        sent: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(f"{type}: {detail}")
        self.type = type
        self.detail = detail
        self.status = status
        self.retry_after = retry_after
        self.sent = sent
        self.extra: Mapping[str, Any] = dict(extra or {})

    @property
    def reason(self) -> str:
        """Why, in one line: the problem's own reason where it has one."""
        return str(self.extra.get("reason") or self.detail)


class NotOwner(Unavailable):
    """Two instances in a row said that another one owns the session; `owner_url` is the last hint.

    Usual while one takes over from another: who has the patience asks again.
    """

    def __init__(self, detail: str, owner_url: str | None) -> None:
        super().__init__("not-owner", detail, status=421, sent=False, extra={"owner_url": owner_url})
        self.owner_url = owner_url


def from_problem(status: int, body: Mapping[str, Any], retry_after: float | None = None) -> SessiondError:
    """The exception for an error answer. `body` is its problem document, or empty."""
    slug = str(body.get("type") or "unknown")
    detail = str(body.get("detail") or body.get("title") or f"HTTP {status}")
    known = {"type", "title", "status", "detail", "instance"}
    extra = {name: value for name, value in body.items() if name not in known}
    reason = str(extra.get("reason") or "unknown")
    if status in (502, 503, 504):
        slug = slug if body else "unreachable"
        return Unavailable(slug, detail, status=status, retry_after=retry_after, extra=extra)
    if status == 421:
        return NotOwner(detail, extra.get("owner_url"))
    match slug:
        case "superseded":
            return Superseded(detail)
        case "ticket-ended":
            return TicketEnded(reason, detail)
        case "lease-lost":
            return LeaseLost(reason, detail)
        case "forbidden" if reason == "no-lease":
            return LeaseLost("unknown", detail, status)
    return ProblemError(slug, status, detail, extra)
