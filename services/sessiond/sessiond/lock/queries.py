"""Queries of a lock's state: who can be granted, which tickets the lock waits for, which deadlines run.

Pure. Rule numbers refer to docs/concepts/lock.md.
"""

from sessiond.lock import events as ev
from sessiond.lock.rules import Kind, Presence, Times
from sessiond.lock.state import Lock, Ticket


def handler_waits(lock: Lock) -> bool:
    """Return whether a handler's ticket that has not lapsed is in the queue, present or not (rule 3)."""
    return any(t.kind is Kind.HANDLER and not t.lapsed for t in lock.queue)


def could_have(lock: Lock, ticket: Ticket) -> bool:
    """Return whether a present ticket could be granted, if the absent tickets ahead of it are ignored."""
    return ticket.present and (ticket.kind is Kind.HANDLER or not handler_waits(lock))


def grantable(lock: Lock) -> tuple[Ticket, frozenset[str]] | None:
    """Return the ticket that may be granted now and the tickets ahead of it that are skipped (rule 2).

    Skipped tickets were passed over or have lapsed. None means that no ticket may be granted yet.
    """
    skipped: set[str] = set()
    for ticket in lock.queue:
        if ticket.present:
            return (ticket, frozenset(skipped)) if could_have(lock, ticket) else None
        if not (ticket.passed or ticket.lapsed):
            return None
        skipped.add(ticket.id)
    return None


def waited_for(lock: Lock) -> list[Ticket]:
    """Return the absent tickets whose `head_wait` runs.

    It runs only while the lock is free and a present ticket that could be granted is behind them.
    """
    if not lock.free:
        return []
    queue = lock.queue
    last = max((i for i, t in enumerate(queue) if could_have(lock, t)), default=-1)
    return [t for t in queue[: max(last, 0)] if not (t.present or t.passed or t.lapsed)]


def timers(lock: Lock, times: Times) -> dict[ev.Timer, float]:
    """Return every deadline that this state asks for, in seconds from the step that first asked for it."""
    found = {ev.Timer("head-wait", t.id): times.head_wait for t in waited_for(lock)}
    handler_holds = lock.lease is not None and lock.lease.kind is Kind.HANDLER
    for t in lock.tickets.values():
        if t.presence is Presence.GRACE:
            found[ev.Timer("grace", t.id)] = times.poll_grace
        if lock.lease is not None and lock.lease.ticket == t.id:
            continue
        if not t.present:
            found[ev.Timer("ticket-ttl", t.id)] = times.ticket_ttl
        if t.kind is Kind.HANDLER and not t.lapsed and t.presence is not Presence.WAITING and not handler_holds:
            found[ev.Timer("absence", t.id)] = times.absence
    if lock.lease is not None:
        name, ttl = ("lease", times.lease_ttl) if lock.lease.claimed else ("claim", times.claim_window)
        found[ev.Timer(name, str(lock.lease.fence))] = ttl
        if handler_holds:
            found[ev.Timer("hold", str(lock.lease.fence))] = times.max_hold
    return found
