"""What may be asked of a lock in this state, how likely: what is allowed, what comes late, and what is plainly wrong."""

from collections.abc import Iterator

from sessiond.lock import events as ev
from sessiond.lock.rules import WORKER_RANK, Kind
from sessiond.lock.state import Lock, Ticket

PLACES = 7
"""So many tickets live at once, about."""
HOLDERS = 3

Likely = Iterator[tuple[int, ev.Event]]


def lock_events(lock: Lock, composed: bool) -> Likely:
    """(weight, event). A Take without an id is to be given one. `composed`: the agent's events come from the agent."""
    yield from _of_takes(lock)
    for ticket in lock.tickets.values():
        yield from _of_ticket(lock, ticket)
    yield from _of_lease(lock)
    for gone in ("tk-1", "tk-none"):
        if gone not in lock.tickets:
            yield 1, ev.Wait(gone, f"{gone}-1")
            yield 1, ev.Withdraw(gone)
            yield 1, ev.GiveUp(gone, f"{gone}-1")
    yield 1, ev.TurnClosed("tu-none")
    if not composed:
        yield from _of_agent(lock)


def _of_takes(lock: Lock) -> Likely:
    weight = 2 if len(lock.tickets) < PLACES else 0
    for rank in (0, 5, 9):
        yield weight, ev.Take("", Kind.HANDLER, rank)
    yield 2 * weight, ev.Take("", Kind.WORKER, WORKER_RANK)
    for key in ("k1", "k2"):
        yield 1, ev.Take("", Kind.HANDLER, 5, key)
        yield 1, ev.Take("", Kind.WORKER, WORKER_RANK, key)


def _of_ticket(lock: Lock, ticket: Ticket) -> Likely:
    names = [f"{ticket.id}-{n}" for n in range(1, HOLDERS + 1)]
    now = ticket.holder or names[0]
    yield 8, ev.Wait(ticket.id, now)
    for name in names:
        yield 1, ev.Wait(ticket.id, name)
        yield int(name == now and bool(ticket.losses)), ev.GiveUp(ticket.id, name)
    yield 2 if ticket.present else 0, ev.WaitOver(ticket.id, now)
    yield 2 if ticket.present else 0, ev.HangUp(ticket.id, now)
    yield 1, ev.HangUp(ticket.id, names[-1])
    yield 1, ev.Withdraw(ticket.id)
    yield 1, ev.Withdraw(ticket.id, now)
    yield 1 if ticket.superseded else 0, ev.Withdraw(ticket.id, min(ticket.superseded, default=""))


def _of_lease(lock: Lock) -> Likely:
    fence = lock.lease.fence if lock.lease else lock.fence
    held = 4 if lock.lease else 1
    yield held, ev.Claim(fence)
    yield held, ev.Release(fence)
    yield 2 * held if lock.turn is None else 1, ev.AcceptTurn(fence, "")
    yield 1, ev.ForceRelease(lock.drain.fence if lock.drain else fence)
    for wrong in (fence - 1, fence + 1):
        yield 1, ev.ForceRelease(wrong)
        yield 1, ev.Release(wrong)
        yield 1, ev.Claim(wrong)
    if lock.lease is not None:
        yield 1, ev.AcceptTurn(fence + 1, "")


def _of_agent(lock: Lock) -> Likely:
    """With an agent that sleeps, nobody else says these."""
    if lock.turn is not None:
        yield 8, ev.TurnClosed(lock.turn)
    yield 6 if lock.tasks else 2, ev.TasksChanged(not lock.tasks)
    yield 4 if lock.open else 1, ev.Reaped()
