"""What the lock is: tickets, the lease, the drain. Immutable values; transitions are in machine.py.

Pure. `stored` fields survive a restart of the owner; presence and passed-over marks do not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sessiond.lock.rules import Kind, LeaseEnd, Presence


@dataclass(frozen=True, slots=True)
class Ticket:
    """A place in the queue, queued or (while its id is the lease's ticket) leased."""

    id: str
    kind: Kind
    score: int
    key: str | None = None
    holder: str | None = None
    """The one holder whose waits count (rule 9); stored."""
    superseded: frozenset[str] = frozenset()
    """Holders that another holder's wait displaced, for good; stored."""
    presence: Presence = Presence.ABSENT
    passed: bool = False
    """Passed over, and not present since."""
    lapsed: bool = False
    """A handler's ticket that no longer bars the worker (rule 6); stored."""
    losses: int = 0
    """Leases in a row lost by expiry or not claimed; stored."""

    @property
    def present(self) -> bool:
        return self.presence is not Presence.ABSENT


@dataclass(frozen=True, slots=True)
class Lease:
    """The exclusive right to run turns. Its secret is the loop's affair, not the machine's."""

    fence: int
    ticket: str
    kind: Kind
    holder: str
    claimed: bool = False
    restarts: int = 0
    """How often an owner's restart let `max_hold` start again (at most once)."""


@dataclass(frozen=True, slots=True)
class Drain:
    """A lease that has ended while something of it is still open."""

    fence: int
    ticket: str
    kind: Kind
    why: LeaseEnd
    forced: bool = False


@dataclass(frozen=True, slots=True)
class Lock:
    """One session's lock. `tickets` holds every ticket that has not ended, by id."""

    arrivals: int = 0
    fence: int = 0
    """The last fence given."""
    tickets: Mapping[str, Ticket] = field(default_factory=dict)
    lease: Lease | None = None
    drain: Drain | None = None
    turn: str | None = None
    """The turn that is open: from `turn accepted` until closed or reaped."""
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
        """The tickets in the sorted set, lowest score first: all but the leased one."""
        leased = self.lease.ticket if self.lease else None
        return tuple(sorted((t for t in self.tickets.values() if t.id != leased), key=lambda t: t.score))
