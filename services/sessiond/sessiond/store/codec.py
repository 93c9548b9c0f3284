"""The encoding of a session's state in Redis: its keys, and its values as JSON.

Pure. `diff` computes which commands a change writes. Presence and passed-over marks are not stored, so that
an epoch starts without them. The sorted set `queue` is authoritative: each ticket of the `tickets` hash is
either in that set or named by the lease.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from sessiond.lock.rules import Kind, LeaseEnd
from sessiond.lock.state import Drain, Lease, Lock, Ticket

RedisCommand = tuple[str, ...]
"""(Redis command, key suffix, arguments…), as the step script expects them."""

KEPT: Final = 30 * 86_400
"""Seconds that the records of turns, lost leases and ended tickets are kept."""

LIVE_KEYS: Final = ("queue", "tickets", "lease", "drain", "open", "agent")
"""The keys that a step with `reset` deletes first. The history is never deleted."""


class BadRecord(ValueError):
    """A stored value is malformed or contradicts another one."""


@dataclass(frozen=True, slots=True)
class LeaseExtras:
    """Data that is stored with a lease and that the lock's machine does not know.

    `hold_left` is the rest of `max_hold` in seconds, None for a worker's lease. `granted_at` is RFC 3339, for
    display only.
    """

    secret: str = field(repr=False)
    hold_left: float | None = None
    granted_at: str = ""


@dataclass(frozen=True, slots=True)
class Extras:
    """Data that is stored beside the lock's state and that the machine does not know.

    `lease` is required whenever the new state has a lease that differs from the old state's lease. `turn` (any
    JSON object) is stored with an open turn. `taken` maps ticket ids to the RFC 3339 times at which they were taken.
    """

    lease: LeaseExtras | None = None
    turn: Mapping[str, Any] = field(default_factory=dict)
    taken: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Meta:
    """The session's `meta` hash: its owner, epoch and version. All fields are empty or 0 for an unknown session."""

    epoch: int = 0
    version: int = 0
    step: str = ""
    instance: str = ""
    url: str = ""
    host: str = ""
    state_dir: str = ""
    beat: int = 0
    rest: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Raw:
    """A session's values in Redis, read in one transaction: hashes, the sorted set with scores, strings."""

    meta: Mapping[str, str] = field(default_factory=dict)
    queue: tuple[tuple[str, int], ...] = ()
    tickets: Mapping[str, str] = field(default_factory=dict)
    lease: str | None = None
    drain: str | None = None
    open: str | None = None
    agent: str | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored session, decoded. `open` is the open turn's object; its field `turn` is the turn's id."""

    meta: Meta
    lock: Lock
    extras: Extras
    open: dict[str, Any] | None
    agent: dict[str, Any] | None


def dumps(value: object) -> str:
    """Return JSON with sorted keys, so that equal values give equal text."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def encode_ticket(ticket: Ticket, taken_at: str = "") -> str:
    """Encode a ticket without presence and passed-over mark. The id is the ticket's field in the hash."""
    return dumps(
        {
            "kind": ticket.kind,
            "score": ticket.score,
            "key": ticket.key,
            "holder": ticket.holder,
            "superseded": sorted(ticket.superseded),
            "lapsed": ticket.lapsed,
            "losses": ticket.losses,
            "taken_at": taken_at,
        }
    )


def decode_ticket(ticket_id: str, text: str) -> tuple[Ticket, str]:
    """Decode a ticket, absent and not passed over, and the time at which it was taken.

    Raises:
        BadRecord: the text is malformed.
    """
    data = _object(text, f"ticket {ticket_id}")
    try:
        ticket = Ticket(
            id=ticket_id,
            kind=Kind(data["kind"]),
            score=int(data["score"]),
            key=data["key"],
            holder=data["holder"],
            superseded=frozenset(data["superseded"]),
            lapsed=bool(data["lapsed"]),
            losses=int(data["losses"]),
        )
        return ticket, str(data["taken_at"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadRecord(f"ticket {ticket_id}: {error!r}") from error


def encode_lease(lease: Lease, extras: LeaseExtras) -> str:
    return dumps(
        {
            "fence": lease.fence,
            "ticket": lease.ticket,
            "kind": lease.kind,
            "holder": lease.holder,
            "claimed": lease.claimed,
            "restarts": lease.restarts,
            "secret": extras.secret,
            "hold_left": extras.hold_left,
            "granted_at": extras.granted_at,
        }
    )


def decode_lease(text: str) -> tuple[Lease, LeaseExtras]:
    """Decode the lease and its extras.

    Raises:
        BadRecord: the text is malformed.
    """
    data = _object(text, "lease")
    try:
        lease = Lease(
            fence=int(data["fence"]),
            ticket=data["ticket"],
            kind=Kind(data["kind"]),
            holder=data["holder"],
            claimed=bool(data["claimed"]),
            restarts=int(data["restarts"]),
        )
        left = data["hold_left"]
        return lease, LeaseExtras(data["secret"], None if left is None else float(left), data["granted_at"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadRecord(f"lease: {error!r}") from error


def encode_drain(drain: Drain) -> str:
    return dumps(
        {
            "fence": drain.fence,
            "ticket": drain.ticket,
            "kind": drain.kind,
            "why": drain.why,
            "forced": drain.forced,
        }
    )


def decode_drain(text: str) -> Drain:
    """Decode the drain.

    Raises:
        BadRecord: the text is malformed.
    """
    data = _object(text, "drain")
    try:
        return Drain(
            fence=int(data["fence"]),
            ticket=data["ticket"],
            kind=Kind(data["kind"]),
            why=LeaseEnd(data["why"]),
            forced=bool(data["forced"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadRecord(f"drain: {error!r}") from error


def put(suffix: str, value: object) -> RedisCommand:
    """Return the command that sets a string to JSON."""
    return ("SET", suffix, dumps(value))


def keep(suffix: str, value: object) -> RedisCommand:
    """Return the command that sets a string to JSON and expires it after KEPT seconds."""
    return ("SETEX", suffix, str(KEPT), dumps(value))


def past_suffix(secret: str) -> str:
    """Return the key suffix of an ended lease's record. It has the secret's hash, never the secret."""
    return f"past:{hashlib.sha256(secret.encode()).hexdigest()}"


def load(raw: Raw) -> Stored:
    """Decode a stored session.

    Raises:
        BadRecord: a value is malformed, or two values contradict each other.
    """
    lease, lease_extras = decode_lease(raw.lease) if raw.lease else (None, None)
    tickets, taken = _load_tickets(raw, lease)
    turn = _object(raw.open, "open") if raw.open else None
    lock = Lock(
        arrivals=_number(raw.meta, "arrivals"),
        fence=_number(raw.meta, "fence"),
        tickets=tickets,
        lease=lease,
        drain=decode_drain(raw.drain) if raw.drain else None,
        turn=str(turn["turn"]) if turn else None,
        tasks=raw.meta.get("tasks") == "1",
    )
    return Stored(
        meta=load_meta(raw.meta),
        lock=lock,
        extras=Extras(lease=lease_extras, turn=turn or {}, taken=taken),
        open=turn,
        agent=_object(raw.agent, "agent") if raw.agent else None,
    )


def load_meta(raw: Mapping[str, str]) -> Meta:
    """Decode the `meta` hash.

    Raises:
        BadRecord: a number is malformed.
    """
    fixed = ("step", "instance", "url", "host", "state_dir", "epoch", "version", "beat")
    return Meta(
        epoch=_number(raw, "epoch"),
        version=_number(raw, "version"),
        step=raw.get("step", ""),
        instance=raw.get("instance", ""),
        url=raw.get("url", ""),
        host=raw.get("host", ""),
        state_dir=raw.get("state_dir", ""),
        beat=_number(raw, "beat"),
        rest={name: value for name, value in raw.items() if name not in fixed},
    )


def _load_tickets(raw: Raw, lease: Lease | None) -> tuple[dict[str, Ticket], dict[str, str]]:
    tickets: dict[str, Ticket] = {}
    taken: dict[str, str] = {}
    for ticket_id, text in raw.tickets.items():
        tickets[ticket_id], taken[ticket_id] = decode_ticket(ticket_id, text)
    expected = {t.id: t.score for t in tickets.values() if lease is None or t.id != lease.ticket}
    queue = dict(raw.queue)
    if queue != expected:
        differing = sorted(item[0] for item in queue.items() ^ expected.items())
        raise BadRecord(f"queue and tickets disagree about {', '.join(differing)}")
    if lease is not None and lease.ticket not in tickets:
        raise BadRecord(f"the lease names ticket {lease.ticket}, which is not stored")
    return tickets, taken


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadRecord(f"{what}: {error}") from error
    if not isinstance(value, dict):
        raise BadRecord(f"{what}: not an object")
    return value


def _number(raw: Mapping[str, str], name: str) -> int:
    try:
        return int(raw.get(name) or 0)
    except ValueError as error:
        raise BadRecord(f"meta {name}: {error}") from error
