"""The queue's numbers and the rules that need no transition: ranks, scores, times, reasons.

Pure: imports nothing that does I/O and reads no clock. Rule numbers name the list under
"The queue" in docs/architecture.md.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

ARRIVALS: Final = 2**42
"""`score = rank * ARRIVALS + arrival`; an arrival that reaches it is an error, never a wrap."""

PRIORITIES: Final = range(10)
DEFAULT_PRIORITY: Final = 5
WORKER_RANK: Final = 30
FENCES_PER_EPOCH: Final = 2**20
LOSSES_ALLOWED: Final = 3


class Kind(StrEnum):
    """Who waits: a handler (a person waits for the answer) or the worker (a long task)."""

    HANDLER = "handler"
    WORKER = "worker"


class Presence(StrEnum):
    """Whether a holder waits on a ticket. GRACE (a wait timed out just now) counts as present."""

    ABSENT = "absent"
    GRACE = "grace"
    WAITING = "waiting"


class LeaseEnd(StrEnum):
    """Why a lease ended; `LOST` are the reasons of 409 `lease-lost`."""

    RELEASED = "released"
    UNCLAIMED = "unclaimed"
    PREEMPTED = "preempted"
    EXPIRED = "expired"
    HOLD_LIMIT = "hold-limit"
    FORCED = "forced"
    WITHDRAWN = "withdrawn"


class TicketEnd(StrEnum):
    """Why a ticket ended; the reasons of 410 `ticket-ended`."""

    RELEASED = "released"
    WITHDRAWN = "withdrawn"
    HOLD_LIMIT = "hold-limit"
    FORCED = "forced"
    LOST_THRICE = "lost-thrice"
    TOO_OLD = "too-old"


@dataclass(frozen=True, slots=True)
class Times:
    """Every deadline of the service, in seconds. All run on the owner's monotonic clock."""

    head_wait: float = 2.0
    poll_grace: float = 2.0
    absence: float = 120.0
    ticket_ttl: float = 86_400.0
    claim_window: float = 5.0
    lease_ttl: float = 30.0
    max_hold: float = 1_800.0
    drain_deadline: float = 10.0
    start_deadline: float = 30.0
    not_taken: float = 5.0
    idle: float = 900.0
    owner_ttl: float = 15.0
    owner_renew: float = 5.0
    owner_doubt: float = 10.0
    long_wait: float = 30.0
    """A wait for the lock that is logged, and logged again as often: a hang must leave a trace."""


class QueueFull(ValueError):
    """The session's queue count reached ARRIVALS."""


def rank_of(kind: Kind, priority: int = DEFAULT_PRIORITY) -> int:
    """The rank of a ticket: a handler's priority 0-9, or the worker's 30.

    Raises ValueError for a priority outside 0-9.
    """
    if kind is Kind.WORKER:
        return WORKER_RANK
    if priority not in PRIORITIES:
        raise ValueError(f"priority must be 0 to 9, not {priority}")
    return priority


def score_of(rank: int, arrival: int) -> int:
    """Lowest first. Raises QueueFull when the arrival no longer fits."""
    if not 0 < arrival < ARRIVALS:
        raise QueueFull(f"arrival {arrival} does not fit below {ARRIVALS}")
    return rank * ARRIVALS + arrival


def priority_of(score: int) -> int:
    """The rank part of a score."""
    return score // ARRIVALS


def first_fence(epoch: int) -> int:
    """Fences of an epoch lie above this number, so that they grow over epochs too."""
    return epoch * FENCES_PER_EPOCH
