"""The queue's constants: ranks, scores, times and reasons.

Pure: this module imports nothing that does I/O and reads no clock. Rule numbers refer to
docs/concepts/lock.md.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

ARRIVALS: Final = 2**42
"""`score = rank * ARRIVALS + arrival`. An arrival that reaches ARRIVALS is an error; it never wraps."""

PRIORITIES: Final = range(10)
DEFAULT_PRIORITY: Final = 5
WORKER_RANK: Final = 30
FENCES_PER_EPOCH: Final = 2**20
LOSSES_ALLOWED: Final = 3


class Kind(StrEnum):
    """The kind of a ticket: a handler's (a person waits for the answer) or the worker's (a long task)."""

    HANDLER = "handler"
    WORKER = "worker"


class Presence(StrEnum):
    """Whether a holder waits on a ticket.

    GRACE counts as present: the last wait timed out less than `poll_grace` ago.
    """

    ABSENT = "absent"
    GRACE = "grace"
    WAITING = "waiting"


class LeaseEnd(StrEnum):
    """Why a lease ended. All but RELEASED are reasons of HTTP 409 `lease-lost`."""

    RELEASED = "released"
    UNCLAIMED = "unclaimed"
    PREEMPTED = "preempted"
    EXPIRED = "expired"
    HOLD_LIMIT = "hold-limit"
    FORCED = "forced"
    WITHDRAWN = "withdrawn"


class TicketEnd(StrEnum):
    """Why a ticket ended: the reasons of HTTP 410 `ticket-ended`."""

    RELEASED = "released"
    WITHDRAWN = "withdrawn"
    HOLD_LIMIT = "hold-limit"
    FORCED = "forced"
    LOST_THRICE = "lost-thrice"
    TOO_OLD = "too-old"


@dataclass(frozen=True, slots=True)
class Times:
    """The deadlines of the service, in seconds. They run on the owner's monotonic clock."""

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
    """A wait for the lock that lasts this long is logged, and logged again after each such interval."""


class QueueFull(ValueError):
    """The session's arrival count reached ARRIVALS."""


def rank_of(kind: Kind, priority: int = DEFAULT_PRIORITY) -> int:
    """Return the rank of a ticket: a handler's priority 0-9, or the worker's 30.

    Raises:
        ValueError: the priority is outside 0-9.
    """
    if kind is Kind.WORKER:
        return WORKER_RANK
    if priority not in PRIORITIES:
        raise ValueError(f"priority must be 0 to 9, got {priority}")
    return priority


def score_of(rank: int, arrival: int) -> int:
    """Return the score of a ticket. The queue serves the lowest score first.

    Raises:
        QueueFull: the arrival does not fit below ARRIVALS.
    """
    if not 0 < arrival < ARRIVALS:
        raise QueueFull(f"arrival {arrival} does not fit below {ARRIVALS}")
    return rank * ARRIVALS + arrival


def priority_of(score: int) -> int:
    """Return the rank part of a score."""
    return score // ARRIVALS


def first_fence(epoch: int) -> int:
    """Return the number above which all fences of this epoch lie, so that fences also grow across epochs."""
    return epoch * FENCES_PER_EPOCH
