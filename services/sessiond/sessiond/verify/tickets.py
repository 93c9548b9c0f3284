"""What is wrong with an entry about a ticket's place."""

from collections.abc import Mapping
from typing import Any, Final

from sessiond.verify.places import HANDLER, Place
from sessiond.verify.state import State

ARRIVALS: Final = 2**42
RANKS: Final = {HANDLER: range(10), "worker": range(30, 31)}
LOSSES: Final = frozenset({"expired", "unclaimed"})
LOSSES_ALLOWED: Final = 3
ENDS_TICKET: Final = frozenset({"released", "withdrawn", "hold-limit", "forced"})
"""Reasons of a lease's end that are the ticket's too."""
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
        r.wrong(place.fifo, f"{place.ticket} has rank {rank}, which is no {place.kind}'s")
    r.arrival = max(r.arrival, arrival)
    r.places.add(place)


def _known(r: State, ticket: str, what: str) -> Place | None:
    place = r.places.find(ticket)
    if place is None:
        r.wrong("no_place_lost", f"{ticket} {what} and has no place")
    return place


def _queued(r: State, ticket: str, what: str) -> Place | None:
    place = r.places.queue.get(ticket)
    if place is None:
        r.wrong("no_place_lost", f"{ticket} {what} and is not in the queue")
    return place


def present(r: State, e: Entry) -> None:
    ticket, holder = e["ticket"], e["holder"]
    place = _known(r, ticket, "is present")
    if place is None:
        return
    if holder in place.gone:
        r.wrong("supersede_is_one_way", f"{holder} waits on {ticket} again")
    elif place.holder not in (None, holder):
        r.wrong("supersede_is_one_way", f"{holder} waits on {ticket}, and {place.holder} was not superseded")
    elif place.present:
        r.wrong("one_holder_per_lease", f"{ticket} is present twice")
    place.holder = holder
    r.places.mark(place, present=True, passed=False, lapsed=False)


def absent(r: State, e: Entry) -> None:
    place = _known(r, e["ticket"], "is absent")
    if place is None:
        return
    if not (place.present or place.passed):  # after an outage the mark is forgotten as well
        r.wrong("one_holder_per_lease", f"{place.ticket} is absent and was not present")
    r.places.mark(place, present=False, passed=False)


def superseded(r: State, e: Entry) -> None:
    place = _known(r, e["ticket"], "is superseded")
    if place is None:
        return
    if place.holder != e["holder"] or e["by"] in place.gone or e["by"] == e["holder"]:
        r.wrong("supersede_is_one_way", f"{e['by']} supersedes {e['holder']}; {place.ticket} is {place.holder}'s")
    place.gone.add(e["holder"])
    place.holder = e["by"]
    r.places.mark(place, present=False)


def passed_over(r: State, e: Entry) -> None:
    ticket = e["ticket"]
    place = _queued(r, ticket, "is passed over")
    if place is None:
        return
    if place.lapsed:
        r.wrong("lapsed_bars_nobody", f"{ticket} has lapsed and was waited for")
    elif place.present or place.passed:
        r.wrong(place.fifo, f"{ticket} is passed over and is {'present' if place.present else 'so already'}")
    elif r.lease is not None or r.drain is not None:
        r.wrong(place.fifo, f"{ticket} is passed over while the lock is not free")
    elif not r.places.anybody_could_have():
        r.wrong(place.fifo, f"{ticket} is passed over for nobody")
    r.places.mark(place, passed=True)


def lapsed(r: State, e: Entry) -> None:
    ticket = e["ticket"]
    place = _queued(r, ticket, "lapses")
    if place is None:
        return
    why = None
    if place.kind != HANDLER:
        why = "is a worker's"
    elif place.present or place.lapsed:
        why = "is present" if place.present else "did so before"
    elif r.lease is not None and r.lease.kind == HANDLER:
        why = "must not while a handler holds"
    if why is not None:
        r.wrong("lapsed_bars_nobody", f"{ticket} lapses and {why}")
    r.places.mark(place, lapsed=True)


def back(r: State, e: Entry) -> None:
    """Rule 7: passed over unless preempted or waited on."""
    ticket, score = e["ticket"], e["score"]
    place, ended = r.places.out.get(ticket), r.step.ended
    if place is None:
        r.wrong("no_place_lost", f"{ticket} comes back and was not out")
        return
    if place.score != score:
        r.wrong("no_place_lost", f"{ticket} comes back with score {score}, had {place.score}")
    if ended is None or ended.ticket != ticket:
        r.wrong("no_place_lost", f"{ticket} comes back and its lease has not ended")
    elif ended.reason in ENDS_TICKET or (place.losses or 0) >= LOSSES_ALLOWED:
        r.wrong("no_place_lost", f"{ticket} comes back, and its lease ended by {ended.reason}")
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
        r.wrong("no_place_lost", f"{ticket} ends by {reason}, {why}")
    r.places.remove(ticket)


def _wrong_in_queue(place: Place, reason: str) -> str | None:
    if reason not in QUEUED_ENDS:
        return "and had no lease"
    return "and is present" if reason == "too-old" and place.present else None


def _wrong_with_lease(r: State, place: Place, reason: str) -> str | None:
    ended = r.step.ended
    if ended is None or ended.ticket != place.ticket:
        return "and its lease has not ended"
    if ended.reason in LOSSES:
        enough = place.losses is None or place.losses >= LOSSES_ALLOWED
        return None if reason == "lost-thrice" and enough else f"and its lease ended by {ended.reason}"
    fits = ended.reason in ENDS_TICKET and ended.reason == reason
    return None if fits else f"and its lease ended by {ended.reason}"
