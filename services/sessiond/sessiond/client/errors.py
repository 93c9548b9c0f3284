"""The client's exceptions. Each is a `SessiondError`."""

from collections.abc import Mapping
from typing import Any


class SessiondError(Exception):
    """Base of the exceptions that `sessiond.client` raises."""


class BadName(SessiondError, ValueError):
    """A session name is not `owner/repo`, or a URL is not an HTTP URL."""


class NestedSessions(SessiondError):
    """A lease of a second session was requested inside the lease of another one.

    Two holders that take two sessions in different orders would deadlock.
    """


class Timeout(SessiondError, TimeoutError):
    """The lease was not granted within the caller's `timeout`."""


class ProblemError(SessiondError):
    """The server refused the request (RFC 9457).

    `type` is the stable slug (`bad-request`, `turn-open`, …), `status` is the HTTP status, `detail` is one
    sentence for people, `extra` has the problem's other members.
    """

    def __init__(self, type: str, status: int, detail: str, extra: Mapping[str, Any] | None = None) -> None:
        super().__init__(f"{type}: {detail}" if detail else type)
        self.type = type
        self.status = status
        self.detail = detail
        self.extra: Mapping[str, Any] = dict(extra or {})


class Superseded(ProblemError):
    """Another run has waited on this ticket since. This run has lost the ticket for good."""

    def __init__(self, detail: str = "another run has taken this ticket over") -> None:
        super().__init__("superseded", 409, detail)


class TicketEnded(ProblemError):
    """The ticket has ended. `reason` is released, withdrawn, hold-limit, forced, lost-thrice or too-old."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__("ticket-ended", 410, detail or f"the ticket has ended: {reason}", {"reason": reason})
        self.reason = reason


class LeaseLost(ProblemError):
    """The lease is lost. `reason` is unclaimed, preempted, expired, hold-limit, forced or withdrawn.

    `released` means that the caller itself released it. `unknown` (HTTP 403) means that the service has no record
    of the lease: the record has expired, or Redis lost the grant.
    """

    def __init__(self, reason: str, detail: str = "", status: int = 409) -> None:
        super().__init__("lease-lost", status, detail or f"the lease is lost: {reason}", {"reason": reason})
        self.reason = reason


class LeaseSuspended(SessiondError):
    """The lease may be lost: its last confirmed renewal is longer than `lease_ttl` ago."""

    def __init__(self) -> None:
        super().__init__("the lease could not be renewed in time; it is unknown whether it is still held")


class Unavailable(SessiondError):
    """The server did not answer, or answered 502, 503 or 504.

    `type` is the problem's slug (`redis-away`, `stopping`, `agent-broken`, …), or `unreachable` when there was no
    answer; `status` is None then. `retry_after` is in seconds, if the server sent it. `sent` is False if the
    request certainly did not reach a server.
    """

    def __init__(
        self,
        type: str,
        detail: str,
        *,
        status: int | None = None,
        sent: bool = True,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(f"{type}: {detail}")
        self.type = type
        self.detail = detail
        self.status = status
        self.retry_after: float | None = None
        self.sent = sent
        self.extra: Mapping[str, Any] = dict(extra or {})

    @property
    def reason(self) -> str:
        """The problem's `reason` if it has one, otherwise its detail."""
        return str(self.extra.get("reason") or self.detail)


class NotOwner(Unavailable):
    """Two instances in a row answered that another one owns the session. `owner_url` is the latest hint.

    This happens while one instance takes over from another. Retry later.
    """

    def __init__(self, detail: str, owner_url: str | None) -> None:
        super().__init__("not-owner", detail, status=421, sent=False, extra={"owner_url": owner_url})
        self.owner_url = owner_url


def from_problem(status: int, body: Mapping[str, Any], retry_after: float | None = None) -> SessiondError:
    """Return the exception for an error response. `body` is its problem document, or empty."""
    slug = str(body.get("type") or "unknown")
    detail = str(body.get("detail") or body.get("title") or f"HTTP {status}")
    known = {"type", "title", "status", "detail", "instance"}
    extra = {name: value for name, value in body.items() if name not in known}
    reason = str(extra.get("reason") or "unknown")
    if status in (502, 503, 504):
        slug = slug if body else "unreachable"
        failure = Unavailable(slug, detail, status=status, extra=extra)
        failure.retry_after = retry_after
        return failure
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
