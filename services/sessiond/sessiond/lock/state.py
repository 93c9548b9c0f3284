"""The lock's state: tickets, the lease and the drain, as immutable values.

Pure. Fields marked `stored` survive a restart of the owner. Presence and passed-over marks do not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sessiond.lock.rules import Kind, LeaseEnd, Presence


@dataclass(frozen=True, slots=True)
class Ticket:
    """A place in the queue. The ticket is leased while the lease names its id, otherwise queued."""

    id: str
    kind: Kind
    score: int
    key: str | None = None
    holder: str | None = None
    """The only holder whose waits count (rule 9). Stored."""
    superseded: frozenset[str] = frozenset()
    """Holders that another holder's wait has displaced for good. Stored."""
    presence: Presence = Presence.ABSENT
    passed: bool = False
    """Whether the ticket was passed over and has not been present since."""
    lapsed: bool = False
    """Whether this handler's ticket no longer blocks the worker (rule 6). Stored."""
    losses: int = 0
    """Leases in a row that expired or were not confirmed in time. Stored."""

    @property
    def present(self) -> bool:
        return self.presence is not Presence.ABSENT


@dataclass(frozen=True, slots=True)
class Lease:
    """The exclusive right to run turns. The owner loop keeps its secret; the machine does not know it."""

    fence: int
    ticket: str
    kind: Kind
    holder: str
    claimed: bool = False
    restarts: int = 0
    """How many owner restarts happened during this lease. Only the first restarts `max_hold`."""


@dataclass(frozen=True, slots=True)
class Drain:
    """A lease that has ended while its turn or a background task is still open."""

    fence: int
    ticket: str
    kind: Kind
    why: LeaseEnd
    forced: bool = False


@dataclass(frozen=True, slots=True)
class Lock:
    """One session's lock. `tickets` maps ids to the tickets that have not ended."""

    arrivals: int = 0
    fence: int = 0
    """The fence of the latest lease."""
    tickets: Mapping[str, Ticket] = field(default_factory=dict)
    lease: Lease | None = None
    drain: Drain | None = None
    turn: str | None = None
    """The open turn: from `turn accepted` until it is closed or its agent is reaped."""
    tasks: bool = False
    """Whether background tasks of the agent run."""

    @property
    def open(self) -> bool:
        return self.turn is not None or self.tasks

    @property
    def free(self) -> bool:
        return self.lease is None and self.drain is None

    @property
    def queue(self) -> tuple[Ticket, ...]:
        """The tickets of the sorted set, lowest score first: all but the leased one."""
        leased = self.lease.ticket if self.lease else None
        return tuple(sorted((t for t in self.tickets.values() if t.id != leased), key=lambda t: t.score))
