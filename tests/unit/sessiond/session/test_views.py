"""Views of a long queue."""

from sessiond.lock import events as ev
from sessiond.lock.machine import decide
from sessiond.lock.rules import Kind
from sessiond.lock.state import Lock
from sessiond.session.views import AHEAD_SHOWN, Queued

MANY = 300


def queue_of(handlers: int, workers: int) -> Lock:
    lock = Lock()
    for number in range(handlers + workers):
        kind = Kind.HANDLER if number < handlers else Kind.WORKER
        lock = decide(lock, ev.Take(f"t{number}", kind, 5 if kind is Kind.HANDLER else 30, None)).lock
    return lock


def test_a_view_names_the_first_tickets_ahead_and_its_position_counts_all() -> None:
    lock = queue_of(MANY, 2)
    queued = Queued(lock)
    views = [queued.view(ticket, "") for ticket in queued.tickets]
    assert [view["position"] for view in views] == list(range(1, MANY + 3))
    for number, view in enumerate(views):
        assert [one["ticket"] for one in view["ahead"]] == [f"t{n}" for n in range(min(number, AHEAD_SHOWN))]


def test_a_waiting_holder_gets_the_same_position_as_the_public_view() -> None:
    lock = queue_of(60, 2)
    queued = Queued(lock)
    for ticket in queued.tickets:
        seen, waiting = queued.view(ticket, "x"), Queued(lock).waiting(ticket)
        assert waiting == {"state": "waiting", "position": seen["position"], "ahead": seen["ahead"]}
