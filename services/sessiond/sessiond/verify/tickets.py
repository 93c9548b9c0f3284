"""Checks of entries about a ticket's place."""

from collections.abc import Mapping
from typing import Any, Final

from sessiond.verify.places import HANDLER, Place
from sessiond.verify.state import State

ARRIVALS: Final = 2**42
RANKS: Final = {HANDLER: range(10), "worker": range(30, 31)}
LOSSES: Final = frozenset({"expired", "unclaimed"})
LOSSES_ALLOWED: Final = 3
ENDS_TICKET: Final = frozenset({"released", "withdrawn", "hold-limit", "forced"})
"""Reasons of a lease's end that also end its ticket."""
QUEUED_ENDS: Final = frozenset({"released", "withdrawn", "too-old"})

Entry = Mapping[str, Any]


def taken(r: State, e: Entry) -> None:
    place = Place(e["ticket"], e["kind"], e["score"])
    if r.places.find(place.ticket) is not None:
        r.wrong("no_place_lost", f"{place.ticket} is taken twice")
        return
    rank, arrival = divmod(place.score, ARRIVALS)
    if arrival <= r.arrival:
        r.wrong(place.fifo, f"{place.ticket} is taken as arrival {arrival}, after {r.arrival}")
    if rank not in RANKS[place.kind]:
        r.wrong(place.fifo, f"{place.ticket} has rank {rank}, which a {place.kind} cannot have")
    r.arrival = max(r.arrival, arrival)
    r.places.add(place)


def _known(r: State, ticket: str, what: str) -> Place | None:
    place = r.places.find(ticket)
    if place is None:
        r.wrong("no_place_lost", f"{ticket} {what} but has no place")
    return place


def _queued(r: State, ticket: str, what: str) -> Place | None:
    place = r.places.queue.get(ticket)
    if place is None:
        r.wrong("no_place_lost", f"{ticket} {what} but is not in the queue")
    return place


def present(r: State, e: Entry) -> None:
    ticket, holder = e["ticket"], e["holder"]
    place = _known(r, ticket, "is present")
    if place is None:
        return
    if holder in place.gone:
        r.wrong("supersede_is_one_way", f"the superseded holder {holder} waits on {ticket} again")
    elif place.holder not in (None, holder):
        r.wrong("supersede_is_one_way", f"{holder} waits on {ticket}, but {place.holder} was not superseded")
    elif place.present:
        r.wrong("one_holder_per_lease", f"{ticket} is present twice")
    place.holder = holder
    r.places.mark(place, present=True, passed=False, lapsed=False)


def absent(r: State, e: Entry) -> None:
    place = _known(r, e["ticket"], "is absent")
    if place is None:
        return
    if not (place.present or place.passed):  # an outage clears the passed-over mark as well
        r.wrong("one_holder_per_lease", f"{place.ticket} becomes absent but was not present")
    r.places.mark(place, present=False, passed=False)


def superseded(r: State, e: Entry) -> None:
    place = _known(r, e["ticket"], "is superseded")
    if place is None:
        return
    if place.holder != e["holder"] or e["by"] in place.gone or e["by"] == e["holder"]:
        text = f"{e['by']} supersedes {e['holder']}, but {place.ticket} belongs to {place.holder}"
        r.wrong("supersede_is_one_way", text)
    place.gone.add(e["holder"])
    place.holder = e["by"]
    r.places.mark(place, present=False)


def passed_over(r: State, e: Entry) -> None:
    ticket = e["ticket"]
    place = _queued(r, ticket, "is passed over")
    if place is None:
        return
    if place.lapsed:
        r.wrong("lapsed_bars_nobody", f"{ticket} has lapsed, but the grant waited for it")
    elif place.present or place.passed:
        r.wrong(place.fifo, f"{ticket} is passed over but is {'present' if place.present else 'passed over already'}")
    elif r.lease is not None or r.drain is not None:
        r.wrong(place.fifo, f"{ticket} is passed over while the lock is not free")
    elif not r.places.anybody_could_have():
        r.wrong(place.fifo, f"{ticket} is passed over, but no present ticket could be granted")
    r.places.mark(place, passed=True)


def lapsed(r: State, e: Entry) -> None:
    ticket = e["ticket"]
    place = _queued(r, ticket, "lapses")
    if place is None:
        return
    why = None
    if place.kind != HANDLER:
        why = "it is a worker's ticket"
    elif place.present or place.lapsed:
        why = "it is present" if place.present else "it has lapsed already"
    elif r.lease is not None and r.lease.kind == HANDLER:
        why = "a handler holds the lease"
    if why is not None:
        r.wrong("lapsed_bars_nobody", f"{ticket} lapses, but {why}")
    r.places.mark(place, lapsed=True)


def back(r: State, e: Entry) -> None:
    """Check a ticket that goes back: it is passed over unless it was preempted or a holder waits on it (rule 7)."""
    ticket, score = e["ticket"], e["score"]
    place, ended = r.places.out.get(ticket), r.step.ended
    if place is None:
        r.wrong("no_place_lost", f"{ticket} goes back to the queue but did not have the lease")
        return
    if place.score != score:
        r.wrong("no_place_lost", f"{ticket} goes back with score {score} instead of {place.score}")
    if ended is None or ended.ticket != ticket:
        r.wrong("no_place_lost", f"{ticket} goes back, but its lease has not ended in this step")
    elif ended.reason in ENDS_TICKET or (place.losses or 0) >= LOSSES_ALLOWED:
        r.wrong("no_place_lost", f"{ticket} goes back, although its lease ended as {ended.reason}")
    preempted = ended is not None and ended.reason == "preempted"
    r.places.move(place, queued=True)
    r.places.mark(place, passed=not place.present and not preempted)


def ticket_ended(r: State, e: Entry) -> None:
    ticket, reason = e["ticket"], e["reason"]
    place = _known(r, ticket, "ends")
    if place is None:
        return
    why = _wrong_in_queue(place, reason) if place.queued else _wrong_with_lease(r, place, reason)
    if why is not None:
        r.wrong("no_place_lost", f"{ticket} ends as {reason}, but {why}")
    r.places.remove(ticket)


def _wrong_in_queue(place: Place, reason: str) -> str | None:
    if reason not in QUEUED_ENDS:
        return "it had no lease"
    return "it is present" if reason == "too-old" and place.present else None


def _wrong_with_lease(r: State, place: Place, reason: str) -> str | None:
    ended = r.step.ended
    if ended is None or ended.ticket != place.ticket:
        return "its lease has not ended in this step"
    if ended.reason in LOSSES:
        enough = place.losses is None or place.losses >= LOSSES_ALLOWED
        return None if reason == "lost-thrice" and enough else f"its lease ended as {ended.reason}"
    allowed = ended.reason in ENDS_TICKET and ended.reason == reason
    return None if allowed else f"its lease ended as {ended.reason}"
