"""Every refusal of the service, as RFC 9457 problem details with a stable `type`.

Pure: knows no web framework, so that the owner loop can raise what HTTP renders. `KINDS` is the
whole list of types; an unknown one, or one with another status, is a mistake in the code and raises
ValueError where it is made.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sessiond.lock import events as ev


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """A type's fixed parts: HTTP status, title, and the default `Retry-After` in seconds."""

    status: int
    title: str
    retry_after: float | None = None


KINDS: Final[Mapping[str, ProblemKind]] = {
    "bad-request": ProblemKind(400, "The request is not valid"),
    "unauthorized": ProblemKind(401, "No valid key was shown"),
    "forbidden": ProblemKind(403, "The key may not do this"),
    "not-found": ProblemKind(404, "There is no such thing"),
    "method-not-allowed": ProblemKind(405, "The method is not allowed here"),
    "superseded": ProblemKind(409, "Another holder waits on the ticket"),
    "lease-lost": ProblemKind(409, "The lease has ended"),
    "turn-open": ProblemKind(409, "A turn is still open"),
    "key-reused": ProblemKind(409, "The key belongs to another prompt"),
    "not-held": ProblemKind(409, "That fence holds nothing"),
    "kind-mismatch": ProblemKind(409, "The key belongs to a ticket of another kind"),
    "ticket-ended": ProblemKind(410, "The ticket has ended"),
    "too-large": ProblemKind(413, "The body is too large"),
    "unsupported-media-type": ProblemKind(415, "The body must be application/json"),
    "not-owner": ProblemKind(421, "Another instance owns the session"),
    "internal": ProblemKind(500, "The service failed"),
    "queue-full": ProblemKind(503, "The queue takes no more tickets", 60.0),
    "board-full": ProblemKind(503, "Too many look at the board", 10.0),
    "agent-broken": ProblemKind(503, "The agent cannot run", 10.0),
    "redis-away": ProblemKind(503, "Redis cannot be reached", 1.0),
    "stopping": ProblemKind(503, "The service is stopping", 2.0),
}


class Problem(Exception):
    """A refusal that the caller is told.

    `type` is a slug of `KINDS`, `status` its status, `detail` one sentence for people,
    `retry_after` seconds (503s have a default), `extra` further members of the body such as
    `reason` or `owner_url`; an `extra` of None is left out. Raises ValueError for a type that is
    not in `KINDS` or a status that is not that type's.
    """

    def __init__(
        self, type: str, status: int, detail: str, *, retry_after: float | None = None, **extra: object
    ) -> None:
        kind = KINDS.get(type)
        if kind is None or kind.status != status:
            raise ValueError(f"no problem type {type!r} with status {status}")
        super().__init__(f"{type}: {detail}")
        self.type = type
        self.status = status
        self.title = kind.title
        self.detail = detail
        self.retry_after = kind.retry_after if retry_after is None else retry_after
        self.extra = {name: value for name, value in extra.items() if value is not None}

    def body(self) -> dict[str, object]:
        """The problem document: type, title, status, detail, then the extra members."""
        fixed = {"type": self.type, "title": self.title, "status": self.status, "detail": self.detail}
        return {**fixed, **self.extra}


def ended(reason: str) -> Problem:
    """410: the ticket is over."""
    return Problem("ticket-ended", 410, f"The ticket has ended: {reason}", reason=reason)


def superseded() -> Problem:
    """409: another holder waits on the ticket."""
    return Problem("superseded", 409, "Another holder waits on this ticket; this one's place is gone for good")


def no_ticket() -> Problem:
    """404: never taken here."""
    return Problem("not-found", 404, "There is no such ticket")


def no_turn() -> Problem:
    """404: never accepted here, or longer ago than turns are kept."""
    return Problem("not-found", 404, "There is no such turn")


def no_lease() -> Problem:
    """403: never shown here, or longer ago than lost leases are kept."""
    return Problem("forbidden", 403, "No lease of this session has that secret", reason="no-lease")


def away() -> Problem:
    """503 for whatever must be committed while Redis cannot be reached."""
    return Problem("redis-away", 503, "Redis cannot be reached; nothing was lost, ask again")


def stopping() -> Problem:
    """503 for whatever a service that ends no longer takes."""
    return Problem("stopping", 503, "The service is stopping; ask again")


def not_owner(url: str | None) -> Problem:
    """421: another instance owns the session; `url` is its, if known."""
    return Problem("not-owner", 421, "Another instance owns the session", owner_url=url or None)


def problem_of(refused: ev.Refused) -> Problem:
    """What a refused event's caller is told."""
    match refused:
        case ev.Superseded():
            return superseded()
        case ev.TurnOpen():
            return Problem("turn-open", 409, "The lease's turn is still open", turn=str(refused))
        case ev.KindMismatch():
            return Problem("kind-mismatch", 409, "The key belongs to a ticket of the other kind")
        case ev.NoTicket():
            return no_ticket()
    return Problem("not-held", 409, "No lease lives under this fence")
