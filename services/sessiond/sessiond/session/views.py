"""The views of a session's lock for callers, as JSON objects. Pure: state in, dictionaries out."""

from collections.abc import Mapping
from typing import Any

from sessiond.lock.queries import handler_waits, waited_for
from sessiond.lock.rules import Kind, priority_of
from sessiond.lock.state import Lock, Ticket

AHEAD_SHOWN = 50
"""How many of the tickets before one are named. Its position counts all of them."""


class Queued:
    """Views of the queue's tickets. The queue is read once for all of them, because it may hold some thousand."""

    def __init__(self, lock: Lock) -> None:
        self.tickets = lock.queue
        self._lock = lock
        self._place = {ticket.id: number for number, ticket in enumerate(self.tickets, 1)}
        waited, barred = {t.id for t in waited_for(lock)}, handler_waits(lock)
        self._before: dict[Kind, list[dict[str, Any]]] = {kind: [] for kind in Kind}
        for other in self.tickets[:AHEAD_SHOWN]:
            why = "head-wait" if other.id in waited else "queued"
            for kind, found in self._before.items():
                first = barred and kind is Kind.WORKER and other.kind is Kind.HANDLER
                found.append({"ticket": other.id, "kind": other.kind.value, "why": "handlers-first" if first else why})

    def ahead(self, ticket: Ticket) -> list[dict[str, Any]]:
        """Return why this ticket does not have the lock: the holders and tickets ahead of it, the most decisive first.

        Of the queued tickets only the first `AHEAD_SHOWN` are named.
        """
        lease, drain = self._lock.lease, self._lock.drain
        if lease is not None and lease.ticket == ticket.id:
            return [{"ticket": None, "kind": lease.kind.value, "why": "held-by-another"}]
        found: list[dict[str, Any]] = []
        if lease is not None:
            found.append({"ticket": lease.ticket, "kind": lease.kind.value, "why": "holds"})
        if drain is not None:
            found.append({"ticket": drain.ticket, "kind": drain.kind.value, "why": "draining"})
        return found + self._before[ticket.kind][: self._place[ticket.id] - 1]

    def view(self, ticket: Ticket, taken_at: str) -> dict[str, Any]:
        """Return one ticket's view. `taken_at` RFC 3339."""
        leased = self._lock.lease is not None and self._lock.lease.ticket == ticket.id
        return {
            "id": ticket.id,
            "kind": ticket.kind.value,
            "priority": priority_of(ticket.score),
            "key": ticket.key,
            "state": "leased" if leased else "queued",
            "position": self._place.get(ticket.id),
            "present": ticket.present,
            "passed_over": ticket.passed,
            "lapsed": ticket.lapsed,
            "holder": ticket.holder,
            "ahead": [] if leased else self.ahead(ticket),
            "taken_at": taken_at,
        }

    def waiting(self, ticket: Ticket) -> dict[str, Any]:
        """Return the answer of a wait that ended without a grant."""
        return {"state": "waiting", "position": self._place.get(ticket.id), "ahead": self.ahead(ticket)}


def ticket_view(lock: Lock, ticket: str, taken: Mapping[str, str]) -> dict[str, Any]:
    """Return the view of the ticket with this id. `taken` RFC 3339, by ticket id."""
    return Queued(lock).view(lock.tickets[ticket], taken.get(ticket, ""))


def holder_view(lock: Lock, expires_at: str | None) -> dict[str, Any] | None:
    """Return the current lease without its secret, or None."""
    lease = lock.lease
    if lease is None:
        return None
    return {
        "fence": lease.fence,
        "ticket": lease.ticket,
        "kind": lease.kind.value,
        "holder": lease.holder,
        "claimed": lease.claimed,
        "expires_at": expires_at,
    }


def snapshot(lock: Lock) -> dict[str, Any]:
    """Return the lock as a ledger entry, from which a trimmed ledger can be read."""
    tickets = [
        {
            "id": t.id, "kind": t.kind.value, "score": t.score, "lapsed": t.lapsed, "holder": t.holder,
            "superseded": sorted(t.superseded), "passed": t.passed, "present": t.present, "losses": t.losses,
        }
        for t in lock.tickets.values()
    ]  # fmt: skip
    lease = lock.lease and {
        "fence": lock.lease.fence, "ticket": lock.lease.ticket, "kind": lock.lease.kind.value,
        "claimed": lock.lease.claimed,
    }  # fmt: skip
    drain = lock.drain and {"fence": lock.drain.fence, "why": lock.drain.why.value}
    return {
        "tickets": tickets, "lease": lease, "drain": drain, "fence": lock.fence, "turn": lock.turn,
        "tasks": lock.tasks,
    }  # fmt: skip


BOARD_QUEUE = 50
"""How many tickets the board shows one by one; it counts the others."""


def board_row(session: str, lock: Lock, since: str | None, agent: str) -> dict[str, Any]:
    """Return a session's line on the board. `since` RFC 3339, `agent` its state."""
    lease = lock.lease
    holder = lease and {"kind": lease.kind.value, "key": _key(lock, lease.ticket), "since": since}
    waiting = {kind.value: 0 for kind in Kind}
    for ticket in lock.queue:
        waiting[ticket.kind.value] += 1
    return {
        "session": session, "holder": holder, "draining": lock.drain is not None, "waiting": waiting, "agent": agent,
    }  # fmt: skip


def board_lock(lock: Lock, since: str | None, taken: Mapping[str, str]) -> dict[str, Any]:
    """Return the holder and since when it holds, and the queue in order with reasons. `taken` by ticket, RFC 3339.

    The board renders this at every change, so its cost is linear in the queue, unlike `ahead` of every ticket.
    """
    lease, drain, queue = lock.lease, lock.drain, lock.queue
    waited, barred = {t.id for t in waited_for(lock)}, handler_waits(lock)
    before = {"head-wait": 0, "handler": 0, "worker": 0}
    shown = []
    for number, ticket in enumerate(queue[:BOARD_QUEUE], 1):
        shown.append(
            {
                "position": number, "ticket": ticket.id, "kind": ticket.kind.value, "key": ticket.key,
                "priority": priority_of(ticket.score), "holder": ticket.holder, "present": ticket.present,
                "passed_over": ticket.passed, "lapsed": ticket.lapsed, "taken_at": taken.get(ticket.id) or None,
                "why": _why(lock, ticket, before, barred),
            }
        )  # fmt: skip
        before[ticket.kind.value] += 1
        before["head-wait"] += ticket.id in waited
    return {
        "holder": lease and {
            "fence": lease.fence, "kind": lease.kind.value, "ticket": lease.ticket, "key": _key(lock, lease.ticket),
            "holder": lease.holder, "claimed": lease.claimed, "since": since,
        },
        "draining": drain and {
            "kind": drain.kind.value, "ticket": drain.ticket, "key": _key(lock, drain.ticket), "why": drain.why.value,
        },
        "queue": shown,
        "more": len(queue) - len(shown),
        "turn": lock.turn,
    }  # fmt: skip


def _why(lock: Lock, ticket: Ticket, before: Mapping[str, int], barred: bool) -> list[dict[str, Any]]:
    """Return the reasons of `ahead`, the most decisive first, with counts; `absent` if nobody waits on the ticket."""
    found: list[dict[str, Any]] = [] if ticket.present else [{"why": "absent"}]
    if lock.lease is not None:
        found.append({"why": "holds", "kind": lock.lease.kind.value})
    if lock.drain is not None:
        found.append({"why": "draining", "kind": lock.drain.kind.value})
    if ticket.kind is Kind.WORKER and barred:
        found.append({"why": "handlers-first", "count": before["handler"]})
    elif before["handler"] + before["worker"]:
        why = "head-wait" if before["head-wait"] else "queued"
        found.append({"why": why, "count": before["handler"] + before["worker"]})
    return found


def _key(lock: Lock, ticket_id: str) -> str | None:
    ticket = lock.tickets.get(ticket_id)
    return ticket.key if ticket else None
