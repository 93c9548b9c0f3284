"""The lock's state machine: `decide(lock, event)` returns the step.

The machine only decides. It reads no clock and does no I/O. Time arrives as `Due(timer)` for a timer
that the state asks for (`queries.timers`), so an explorer can expire any timer at any moment.

Every step ends in `_settle`. It applies the rules that depend on the state alone: preemption, head first,
and no free lock while a ticket can be granted. No event handler grants by itself.

    FREE --grant--> HELD --end, nothing open--> FREE (or HELD by the next, in the same step)
                      +----end, something open--> DRAINING --closed or reaped--> FREE | HELD

Rule numbers refer to docs/concepts/lock.md.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum
from typing import Any

from sessiond.lock import events as ev
from sessiond.lock import queries
from sessiond.lock.rules import (
    LOSSES_ALLOWED,
    Kind,
    LeaseEnd,
    Presence,
    TicketEnd,
    Times,
    priority_of,
    score_of,
)
from sessiond.lock.state import Drain, Lease, Lock, Ticket


class Phase(Enum):
    """The three states of the lock."""

    FREE = "free"
    HELD = "held"
    DRAINING = "draining"


class Move(Enum):
    """The transitions between the phases."""

    GRANT = "grant"
    END = "end, nothing open"
    END_OPEN = "end, something open"
    DRAINED = "closed or reaped"


MOVES: Mapping[tuple[Phase, Move], Phase] = {
    (Phase.FREE, Move.GRANT): Phase.HELD,
    (Phase.HELD, Move.END): Phase.FREE,
    (Phase.HELD, Move.END_OPEN): Phase.DRAINING,
    (Phase.DRAINING, Move.DRAINED): Phase.FREE,
}

TICKET_END: Mapping[LeaseEnd, TicketEnd] = {
    LeaseEnd.RELEASED: TicketEnd.RELEASED,
    LeaseEnd.HOLD_LIMIT: TicketEnd.HOLD_LIMIT,
    LeaseEnd.FORCED: TicketEnd.FORCED,
    LeaseEnd.WITHDRAWN: TicketEnd.WITHDRAWN,
}
"""Lease ends that also end the ticket. The others put it back into the queue (rule 7)."""

LOSSES = frozenset({LeaseEnd.EXPIRED, LeaseEnd.UNCLAIMED})


def phase(lock: Lock) -> Phase:
    """Return the phase of this state."""
    if lock.lease is not None:
        return Phase.HELD
    return Phase.DRAINING if lock.drain is not None else Phase.FREE


# ---- the draft of a step ---------------------------------------------------------------------


class _Draft:
    """The step while it is decided. It is the only mutable object of this module."""

    def __init__(self, lock: Lock) -> None:
        self.lock = lock
        self.ledger: list[ev.Entry] = []
        self.effects: list[ev.Effect] = []

    def note(self, event: str, **data: Any) -> None:
        self.ledger.append((event, data))

    def move(self, move: Move, **changes: Any) -> None:
        after = replace(self.lock, **changes)
        if MOVES.get((phase(self.lock), move)) is not phase(after):
            raise ev.InvariantBroken("no_dual_ownership", f"{move.value} in {phase(self.lock).value}")
        self.lock = after

    def put(self, ticket: Ticket) -> None:
        self.lock = replace(self.lock, tickets={**self.lock.tickets, ticket.id: ticket})

    def drop(self, ticket: str, reason: TicketEnd) -> None:
        left = {k: v for k, v in self.lock.tickets.items() if k != ticket}
        self.lock = replace(self.lock, tickets=left)
        self.note("ticket-ended", ticket=ticket, reason=reason.value)
        self.effects.append(ev.TicketOver(ticket, reason))

    def ticket(self, ticket: str) -> Ticket:
        try:
            return self.lock.tickets[ticket]
        except KeyError:
            raise ev.NoTicket(ticket) from None

    def step(self) -> ev.Decision:
        return ev.Decision(self.lock, tuple(self.ledger), tuple(self.effects))


def decide(lock: Lock, event: ev.Event) -> ev.Decision:
    """Return the step that `event` causes in `lock`.

    Raises:
        Refused: the event is not allowed now. Nothing changes.
        InvariantBroken: the state itself is wrong.
        QueueFull: the session has used its last arrival number.
    """
    draft = _Draft(lock)
    _HANDLERS[type(event)](draft, event)
    _settle(draft)
    if draft.lock.fence < lock.fence:
        raise ev.InvariantBroken("fence_grows", f"{lock.fence} to {draft.lock.fence}")
    return draft.step()


def _settle(d: _Draft) -> None:
    lease = d.lock.lease
    if lease is not None and lease.kind is Kind.WORKER and queries.handler_waits(d.lock):
        _end_lease(d, LeaseEnd.PREEMPTED)
    if d.lock.free and not d.lock.open and (found := queries.grantable(d.lock)):
        _grant(d, *found)


def _grant(d: _Draft, ticket: Ticket, skipped: frozenset[str]) -> None:
    if ticket.holder is None:
        raise ev.InvariantBroken("one_holder_per_lease", f"{ticket.id} is present without a holder")
    fence = d.lock.fence + 1
    lease = Lease(fence, ticket.id, ticket.kind, ticket.holder)
    d.put(replace(ticket, presence=Presence.ABSENT, passed=False))
    d.move(Move.GRANT, lease=lease, fence=fence)
    d.note(
        "granted", ticket=ticket.id, fence=fence, kind=ticket.kind.value, holder=ticket.holder,
        score=ticket.score, skipped=sorted(skipped),
    )  # fmt: skip
    d.effects.append(ev.Granted(ticket.id, ticket.holder, fence, skipped))


def _end_lease(d: _Draft, reason: LeaseEnd) -> None:
    lease = d.lock.lease
    if lease is None:
        raise ev.InvariantBroken("release_only_by_owner", f"{reason.value} without a lease")
    opened = d.lock.open
    data: dict[str, Any] = {"fence": lease.fence, "ticket": lease.ticket, "kind": lease.kind.value}
    d.note("ended", **data, reason=reason.value, open=opened)
    d.effects.append(ev.LeaseOver(lease.fence, lease.ticket, lease.holder, reason))
    if opened:
        d.move(Move.END_OPEN, lease=None, drain=Drain(lease.fence, lease.ticket, lease.kind, reason))
        d.note("draining", fence=lease.fence, why=reason.value)
    else:
        d.move(Move.END, lease=None)
    _after_lease(d, d.ticket(lease.ticket), lease, reason)


def _after_lease(d: _Draft, ticket: Ticket, lease: Lease, reason: LeaseEnd) -> None:
    """End the ticket, or put it back with its old score (rule 7)."""
    losses = ticket.losses + 1 if reason in LOSSES else 0
    if reason in TICKET_END:
        d.drop(ticket.id, TICKET_END[reason])
    elif losses >= LOSSES_ALLOWED:
        d.drop(ticket.id, TicketEnd.LOST_THRICE)
    else:
        other_waits = ticket.holder != lease.holder and ticket.present
        passed = reason is not LeaseEnd.PREEMPTED and not other_waits
        d.put(replace(ticket, losses=losses, passed=passed))
        d.note("back", ticket=ticket.id, score=ticket.score)


# ---- events ----------------------------------------------------------------------------------


def _take(d: _Draft, e: ev.Take) -> None:
    for t in d.lock.tickets.values():
        if e.key is not None and t.key == e.key:
            if t.kind is not e.kind:
                raise ev.KindMismatch(t.id)
            return
    arrival = d.lock.arrivals + 1
    score = score_of(e.rank, arrival)
    d.lock = replace(d.lock, arrivals=arrival)
    d.put(Ticket(e.ticket, e.kind, score, e.key))
    d.note("taken", ticket=e.ticket, kind=e.kind.value, score=score, key=e.key, priority=priority_of(score))


def _wait(d: _Draft, e: ev.Wait) -> None:
    ticket = d.ticket(e.ticket)
    lease = d.lock.lease
    if e.holder in ticket.superseded:
        raise ev.Superseded(e.holder)
    if lease is not None and lease.ticket == ticket.id and lease.holder == ticket.holder == e.holder:
        d.effects.append(ev.Granted(ticket.id, e.holder, lease.fence, frozenset()))
        return
    if ticket.holder != e.holder:
        if ticket.holder is not None:
            d.note("superseded", ticket=ticket.id, holder=ticket.holder, by=e.holder)
            d.effects.append(ev.Displaced(ticket.id, ticket.holder))
            ticket = replace(ticket, superseded=ticket.superseded | {ticket.holder})
        ticket = replace(ticket, holder=e.holder, presence=Presence.ABSENT)
    if not ticket.present:
        d.note("present", ticket=ticket.id, holder=e.holder)
    d.put(replace(ticket, presence=Presence.WAITING, passed=False, lapsed=False))


def _leave(d: _Draft, ticket: Ticket) -> None:
    d.put(replace(ticket, presence=Presence.ABSENT))
    d.note("absent", ticket=ticket.id)


def _wait_over(d: _Draft, e: ev.WaitOver) -> None:
    ticket = d.lock.tickets.get(e.ticket)
    if ticket is not None and ticket.holder == e.holder and ticket.presence is Presence.WAITING:
        d.put(replace(ticket, presence=Presence.GRACE))


def _hang_up(d: _Draft, e: ev.HangUp) -> None:
    ticket = d.lock.tickets.get(e.ticket)
    if ticket is not None and ticket.holder == e.holder and ticket.present:
        _leave(d, ticket)


def _leased(d: _Draft, fence: int) -> Lease:
    lease = d.lock.lease
    if lease is None or lease.fence != fence:
        raise ev.NotHeld(str(fence))
    return lease


def _confirm_grant(d: _Draft, e: ev.ConfirmGrant) -> None:
    lease = _leased(d, e.fence)
    if not lease.claimed:
        d.lock = replace(d.lock, lease=replace(lease, claimed=True))
        d.note("claimed", fence=lease.fence, ticket=lease.ticket)


def _release(d: _Draft, e: ev.Release) -> None:
    _leased(d, e.fence)
    _end_lease(d, LeaseEnd.RELEASED)


def _give_up(d: _Draft, e: ev.GiveUp) -> None:
    ticket = d.lock.tickets.get(e.ticket)
    leased = d.lock.lease is not None and d.lock.lease.ticket == e.ticket
    if ticket is not None and ticket.holder == e.holder and not leased:
        d.drop(ticket.id, TicketEnd.RELEASED)


def _withdraw(d: _Draft, e: ev.Withdraw) -> None:
    ticket = d.ticket(e.ticket)
    if e.holder is not None and ticket.holder not in (None, e.holder):
        raise ev.Superseded(e.holder)
    lease = d.lock.lease
    if lease is None or lease.ticket != ticket.id:
        d.drop(ticket.id, TicketEnd.WITHDRAWN)
    elif e.holder is None or e.holder == lease.holder:
        _end_lease(d, LeaseEnd.WITHDRAWN)
    elif ticket.present:
        # The withdrawing holder ends its own wait. Another holder's lease stays.
        _leave(d, ticket)


def _force(d: _Draft, e: ev.ForceRelease) -> None:
    lease, drain = d.lock.lease, d.lock.drain
    if lease is not None and lease.fence == e.fence:
        _end_lease(d, LeaseEnd.FORCED)
    elif drain is not None and drain.fence == e.fence and not drain.forced:
        d.lock = replace(d.lock, drain=replace(drain, forced=True))
        d.effects.append(ev.RecoverNow(drain.fence))
    else:
        raise ev.NotHeld(str(e.fence))


def _accept_turn(d: _Draft, e: ev.AcceptTurn) -> None:
    _leased(d, e.fence)
    if d.lock.turn is not None:
        raise ev.TurnOpen(d.lock.turn)
    _confirm_grant(d, ev.ConfirmGrant(e.fence))
    d.lock = replace(d.lock, turn=e.turn)


def _closed(d: _Draft, how: str) -> None:
    if d.lock.drain is not None and not d.lock.open:
        d.note("drained", fence=d.lock.drain.fence, how=how)
        d.move(Move.DRAINED, drain=None)


def _turn_closed(d: _Draft, e: ev.TurnClosed) -> None:
    if d.lock.turn != e.turn:
        raise ev.InvariantBroken("one_turn_open", f"{e.turn} closed, {d.lock.turn} is open")
    d.lock = replace(d.lock, turn=None)
    _closed(d, "closed")


def _tasks_changed(d: _Draft, e: ev.TasksChanged) -> None:
    if d.lock.tasks != e.running:
        d.lock = replace(d.lock, tasks=e.running)
        d.note("tasks", running=e.running)
    _closed(d, "closed")


def _reaped(d: _Draft, _: ev.Reaped) -> None:
    d.lock = replace(d.lock, turn=None, tasks=False)
    _closed(d, "reaped")


# ---- timers ----------------------------------------------------------------------------------


def _due(d: _Draft, e: ev.Due) -> None:
    """Handle an expired timer. Ignore one that the state no longer asks for: it is late, not wrong."""
    if e.timer in queries.timers(d.lock, Times()):
        _DUE[e.timer.name](d, e.timer.subject)


def _head_wait_over(d: _Draft, subject: str) -> None:
    d.put(replace(d.ticket(subject), passed=True))
    d.note("passed-over", ticket=subject)


def _absence_over(d: _Draft, subject: str) -> None:
    if d.ticket(subject).present:  # `poll_grace` may exceed `absence`; a lapsed ticket is never present
        _leave(d, d.ticket(subject))
    d.put(replace(d.ticket(subject), lapsed=True))
    d.note("lapsed", ticket=subject)


_DUE: Mapping[str, Callable[[_Draft, str], None]] = {
    "head-wait": _head_wait_over,
    "grace": lambda d, subject: _leave(d, d.ticket(subject)),
    "absence": _absence_over,
    "ticket-ttl": lambda d, subject: d.drop(subject, TicketEnd.TOO_OLD),
    "claim": lambda d, _: _end_lease(d, LeaseEnd.UNCLAIMED),
    "lease": lambda d, _: _end_lease(d, LeaseEnd.EXPIRED),
    "hold": lambda d, _: _end_lease(d, LeaseEnd.HOLD_LIMIT),
}

_HANDLERS: Mapping[type, Callable[[_Draft, Any], None]] = {
    ev.Take: _take,
    ev.Wait: _wait,
    ev.WaitOver: _wait_over,
    ev.HangUp: _hang_up,
    ev.ConfirmGrant: _confirm_grant,
    ev.Release: _release,
    ev.GiveUp: _give_up,
    ev.Withdraw: _withdraw,
    ev.ForceRelease: _force,
    ev.AcceptTurn: _accept_turn,
    ev.TurnClosed: _turn_closed,
    ev.TasksChanged: _tasks_changed,
    ev.Reaped: _reaped,
    ev.Due: _due,
}


def restarted(lock: Lock) -> Lock:
    """Return the stored lock at the start of a new epoch, without presence and passed-over marks."""
    tickets = {k: replace(t, presence=Presence.ABSENT, passed=False) for k, t in lock.tickets.items()}
    lease = replace(lock.lease, restarts=lock.lease.restarts + 1) if lock.lease else None
    return replace(lock, tickets=tickets, lease=lease)
