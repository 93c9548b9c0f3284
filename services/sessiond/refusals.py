"""The machine's refusals as the problems that callers are told. Pure."""

from sessiond.lock import events as ev
from sessiond.problems import Problem


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
