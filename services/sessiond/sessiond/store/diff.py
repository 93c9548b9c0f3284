"""The commands that turn one stored state of a lock into the next. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

from sessiond.lock.state import Drain, Lease, Lock
from sessiond.store.codec import Extras, LeaseExtras, RedisCommand, encode_drain, encode_lease, encode_ticket, put


def diff(old: Lock, new: Lock, extras: Extras | None = None) -> list[RedisCommand]:
    """Return the commands that turn the stored `old` into `new`, empty if nothing stored has changed.

    Raises:
        ValueError: a lease must be written and `extras` has no lease.
    """
    extras = extras or Extras()
    return [
        *_counts(old, new),
        *_tickets(old, new, extras.taken),
        *_places(old, new),
        *lease(old.lease, new.lease, extras.lease),
        *_drain(old.drain, new.drain),
        *_open(old.turn, new.turn, extras.turn),
    ]


def full(lock: Lock, extras: Extras, agent: Mapping[str, Any] | None) -> list[RedisCommand]:
    """Return the commands that write the whole state, for a step with `reset`.

    The step deletes codec.LIVE_KEYS first. The `meta` hash stays, so its counts are written even when they are 0.
    """
    commands: list[RedisCommand] = [
        ("HSET", "meta", "arrivals", "0"),
        ("HSET", "meta", "fence", "0"),
        ("HSET", "meta", "tasks", "0"),
    ]
    commands += diff(Lock(), lock, extras)
    if agent is not None:
        commands.append(put("agent", agent))
    return commands


def _counts(old: Lock, new: Lock) -> Iterable[RedisCommand]:
    if old.arrivals != new.arrivals:
        yield ("HSET", "meta", "arrivals", str(new.arrivals))
    if old.fence != new.fence:
        yield ("HSET", "meta", "fence", str(new.fence))
    if old.tasks != new.tasks:
        yield ("HSET", "meta", "tasks", "1" if new.tasks else "0")


def _tickets(old: Lock, new: Lock, taken: Mapping[str, str]) -> Iterable[RedisCommand]:
    for ticket_id, ticket in new.tickets.items():
        before = old.tickets.get(ticket_id)
        if before is ticket:
            continue
        if before is None or encode_ticket(before) != encode_ticket(ticket):
            yield ("HSET", "tickets", ticket_id, encode_ticket(ticket, taken.get(ticket_id, "")))
    for ticket_id in old.tickets:
        if ticket_id not in new.tickets:
            yield ("HDEL", "tickets", ticket_id)


def _places(old: Lock, new: Lock) -> Iterable[RedisCommand]:
    before, after = _scores(old), _scores(new)
    for ticket_id, score in after.items():
        if before.get(ticket_id) != score:
            yield ("ZADD", "queue", str(score), ticket_id)
    granted = granted_ticket(old, new)
    if granted is not None and granted not in before:
        # Put back and granted again in one step (rule 9). The script grants only a member of the set.
        yield ("ZADD", "queue", str(new.tickets[granted].score), granted)
        yield ("ZREM", "queue", granted)
    for ticket_id in before:
        if ticket_id not in after:
            yield ("ZREM", "queue", ticket_id)


def granted_ticket(old: Lock, new: Lock) -> str | None:
    """Return the ticket that the step from `old` to `new` grants, if any."""
    if new.lease is None or (old.lease is not None and old.lease.fence == new.lease.fence):
        return None
    return new.lease.ticket


def _scores(lock: Lock) -> dict[str, int]:
    leased = lock.lease.ticket if lock.lease else None
    return {ticket.id: ticket.score for ticket in lock.tickets.values() if ticket.id != leased}


def lease(old: Lease | None, new: Lease | None, extras: LeaseExtras | None) -> Iterable[RedisCommand]:
    """Return the commands that write the lease alone.

    Raises:
        ValueError: the lease must be written and `extras` is None.
    """
    if old == new:
        return
    if new is None:
        yield ("DEL", "lease")
    elif extras is None:
        raise ValueError(f"the lease with fence {new.fence} cannot be stored without its secret")
    else:
        yield ("SET", "lease", encode_lease(new, extras))


def _drain(old: Drain | None, new: Drain | None) -> Iterable[RedisCommand]:
    if old != new:
        yield ("SET", "drain", encode_drain(new)) if new else ("DEL", "drain")


def _open(old: str | None, new: str | None, extras: Mapping[str, Any]) -> Iterable[RedisCommand]:
    if old != new:
        yield put("open", {**extras, "turn": new}) if new else ("DEL", "open")
