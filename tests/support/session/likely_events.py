"""Random events for a lock in a given state: allowed, late and wrong ones, with weights."""

from collections.abc import Iterable

from sessiond.lock import events as ev
from sessiond.lock import queries
from sessiond.lock.rules import WORKER_RANK, Kind, Times
from sessiond.lock.state import Lock, Ticket

HOLDERS = 3

Weighted = Iterable[tuple[int, ev.Event]]


def lock_events(lock: Lock, composed: bool) -> list[ev.Event]:
    """Return each event as often as its weight says.

    The caller sets the id of a Take. With `composed`, a fake agent sends the agent's events.
    """
    usual = [*_of_takes(lock), *_of_lease(lock), *(() if composed else _of_agent(lock))]
    odd = [event for ticket in lock.tickets.values() for event in _of_ticket(lock, ticket)]
    return [event for weight, event in (*_waits(lock), *odd, *_wrong(lock), *usual) for _ in range(weight)]


def _waits(lock: Lock) -> Weighted:
    for ticket in lock.tickets.values():
        yield 1 if ticket.present else 6 + 6 * ticket.losses, ev.Wait(ticket.id, ticket.holder or f"{ticket.id}-1")


def _wrong(lock: Lock) -> Weighted:
    fence = lock.lease.fence if lock.lease else lock.fence
    for event in (
        ev.ForceRelease(fence - 1),
        ev.Release(fence + 1),
        ev.ConfirmGrant(fence - 1),
        ev.AcceptTurn(fence + 1, ""),
    ):
        yield 1, event
    for gone in ("tk-1", "tk-none"):
        if gone not in lock.tickets:
            yield 1, ev.Wait(gone, f"{gone}-1")
            yield 1, ev.Withdraw(gone)
            yield 1, ev.GiveUp(gone, f"{gone}-1")
    yield 1, ev.TurnClosed("tu-none")


def _of_takes(lock: Lock) -> Weighted:
    weight = 3 - min(3, len(lock.tickets) // 2)
    for rank in (0, 5, 9):
        yield weight, ev.Take("", Kind.HANDLER, rank)
    yield 1 + 2 * weight, ev.Take("", Kind.WORKER, WORKER_RANK)
    yield 1, ev.Take("", Kind.HANDLER, 5)
    for key in ("k1", "k2"):
        yield 1, ev.Take("", Kind.HANDLER, 5, key)
        yield 1, ev.Take("", Kind.WORKER, WORKER_RANK, key)


def _of_ticket(lock: Lock, ticket: Ticket) -> Weighted:
    names = [f"{ticket.id}-{n}" for n in range(1, HOLDERS + 1)]
    now = ticket.holder or names[0]
    present = 2 if ticket.present else 0
    for name in names:
        yield 3 if name in ticket.superseded else 1, ev.Wait(ticket.id, name)
    yield 1 if ticket.losses else 0, ev.GiveUp(ticket.id, now)
    yield 2 * present, ev.WaitOver(ticket.id, now)
    yield present, ev.HangUp(ticket.id, now)
    yield 1, ev.HangUp(ticket.id, names[-1])
    yield 0 if ticket.losses else 1, ev.Withdraw(ticket.id, None if ticket.present else now)
    yield 1 if ticket.superseded else 0, ev.Withdraw(ticket.id, min(ticket.superseded, default=""))


def _of_lease(lock: Lock) -> Weighted:
    lease, drain = lock.lease, lock.drain
    fence = lease.fence if lease else lock.fence
    yield 3 if lease or drain else 1, ev.ForceRelease(drain.fence if drain else fence)
    yield 8 if lease and not lease.claimed else 1, ev.ConfirmGrant(fence)
    yield 10 if lease else 1, ev.Release(fence)
    yield (20 if lock.turn is None else 4) if lease else 1, ev.AcceptTurn(fence, "")


TIMERS = {"grace": 8, "claim": 4, "hold": 1, "ticket-ttl": 1, "absence": 2, "lease": 4, "head-wait": 12}
"""The weight of each timer."""


def timers(lock: Lock) -> list[ev.Timer]:
    """Return the timers that the state needs, each as often as its weight says, but only one `ticket-ttl`."""
    wanted = sorted(queries.timers(lock, Times()), key=lambda t: (t.name == "ticket-ttl", t.name, t.subject))
    old = [timer for timer in wanted if timer.name == "ticket-ttl"]
    return [timer for timer in wanted if timer not in old[1:] for _ in range(TIMERS[timer.name])]


def _of_agent(lock: Lock) -> Weighted:
    """Return the agent's events. While the agent sleeps, they have no other source."""
    if lock.turn is not None:
        yield 16, ev.TurnClosed(lock.turn)
    yield 10 if lock.tasks else 2, ev.TasksChanged(not lock.tasks)
    yield 4 if lock.open else 1, ev.Reaped()
