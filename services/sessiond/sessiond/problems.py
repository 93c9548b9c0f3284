"""The problem types of sessiond, and the problems that several modules raise.

Pure: knows no web framework, so that the owner loop can raise what HTTP renders.
"""

from collections.abc import Mapping
from typing import ClassVar, Final

from sessiond.lock import events as ev
from sessiond_common.problems import BaseProblem, ProblemKind

KINDS: Final[Mapping[str, ProblemKind]] = {
    "bad-request": ProblemKind(400, "The request is not valid"),
    "unauthorized": ProblemKind(401, "The key is missing or unknown"),
    "forbidden": ProblemKind(403, "This key may not do this"),
    "not-found": ProblemKind(404, "Not found"),
    "method-not-allowed": ProblemKind(405, "The method is not allowed here"),
    "superseded": ProblemKind(409, "Another holder waits on this ticket"),
    "lease-lost": ProblemKind(409, "The lease has ended"),
    "turn-open": ProblemKind(409, "A turn is still open"),
    "key-reused": ProblemKind(409, "The key belongs to another prompt"),
    "not-held": ProblemKind(409, "No lease has this fence"),
    "kind-mismatch": ProblemKind(409, "The key belongs to a ticket of another kind"),
    "ticket-ended": ProblemKind(410, "The ticket has ended"),
    "too-large": ProblemKind(413, "The body is too large"),
    "unsupported-media-type": ProblemKind(415, "The body must be application/json"),
    "not-owner": ProblemKind(421, "Another instance owns the session"),
    "internal": ProblemKind(500, "The service failed"),
    "queue-full": ProblemKind(503, "The queue is full", 60.0),
    "board-full": ProblemKind(503, "Too many viewers of the board", 10.0),
    "agent-broken": ProblemKind(503, "The agent cannot run", 10.0),
    "redis-away": ProblemKind(503, "Redis cannot be reached", 1.0),
    "stopping": ProblemKind(503, "The service is stopping", 2.0),
}


class Problem(BaseProblem):
    """A refusal that the caller receives; see `BaseProblem`.

    Code that raises a problem also gives its `status`, so that readers need not look it up.

    Raises:
        ValueError: `type` is not in `KINDS`, or `status` is not that type's.
    """

    kinds: ClassVar[Mapping[str, ProblemKind]] = KINDS

    def __init__(
        self, type: str, status: int, detail: str, *, retry_after: float | None = None, **extra: object
    ) -> None:
        super().__init__(type, detail, retry_after=retry_after, **extra)
        if status != self.kind.status:
            raise ValueError(f"problem type {type!r} has status {self.kind.status}, not {status}")


def ended(reason: str) -> Problem:
    """410: the ticket has ended."""
    return Problem("ticket-ended", 410, f"The ticket has ended: {reason}", reason=reason)


def superseded() -> Problem:
    """409: another holder waits on the ticket."""
    return Problem("superseded", 409, "Another holder waits on this ticket; this holder cannot use it again")


def no_ticket() -> Problem:
    """404: the session never had this ticket."""
    return Problem("not-found", 404, "No such ticket")


def no_turn() -> Problem:
    """404: the session never had this turn, or its record has expired."""
    return Problem("not-found", 404, "No such turn")


def no_lease() -> Problem:
    """403: the session never had this lease, or its record has expired."""
    return Problem("forbidden", 403, "No lease of this session has this secret", reason="no-lease")


def away() -> Problem:
    """503: the call needs a commit, and Redis cannot be reached."""
    return Problem("redis-away", 503, "Redis cannot be reached; nothing is lost, retry later")


def stopping() -> Problem:
    """503: the service is stopping and takes no such call."""
    return Problem("stopping", 503, "The service is stopping; retry later")


def not_owner(url: str | None) -> Problem:
    """421: another instance owns the session, at `url` if that is known."""
    return Problem("not-owner", 421, "Another instance owns the session", owner_url=url or None)


def problem_of(refused: ev.Refused) -> Problem:
    """Return the problem for an event that the lock machine refused."""
    match refused:
        case ev.Superseded():
            return superseded()
        case ev.TurnOpen():
            return Problem("turn-open", 409, "The turn of this lease is still open", turn=str(refused))
        case ev.KindMismatch():
            return Problem("kind-mismatch", 409, "The key belongs to a ticket of the other kind")
        case ev.NoTicket():
            return no_ticket()
    return Problem("not-held", 409, "No lease has this fence")
