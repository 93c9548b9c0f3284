"""Checks of entries about the lease, its end and its drain."""

from collections.abc import Mapping
from typing import Any

from sessiond.verify.places import WORKER, Place
from sessiond.verify.state import Drain, Ended, Lease, State
from sessiond.verify.tickets import ENDS_TICKET, LOSSES

Entry = Mapping[str, Any]


def granted(r: State, e: Entry) -> None:
    ticket, fence = e["ticket"], e["fence"]
    r.report.handoffs += 1
    r.report.order.append(ticket)
    if r.lease is not None:
        r.wrong("no_dual_ownership", f"{ticket} is granted while {r.lease.ticket} holds the lease")
    if r.drain is not None:
        r.wrong("no_grant_while_draining", f"{ticket} is granted while lease {r.drain.fence} drains")
    elif r.open:
        r.wrong("nothing_outlives_its_lease", f"{ticket} is granted while a turn or a background task is open")
    if fence != r.fence + 1:
        r.wrong("fence_grows", f"{fence} follows {r.fence}")
    place = r.places.queue.get(ticket)
    if place is None:
        r.wrong("no_place_lost", f"{ticket} is granted but was not in the queue")
        r.places.remove(ticket)
        place = Place(ticket, e["kind"], e["score"], holder=e["holder"], present=True)
        r.places.add(place)
    _holder(r, e, place)
    r.places.mark(place, present=False, passed=False)
    r.places.move(place, queued=False)
    _order(r, place)
    _skipped(r, e, place)
    r.fence, r.lease = max(r.fence, fence), Lease(fence, ticket, place.kind, e["holder"], False)


def _holder(r: State, e: Entry, place: Place) -> None:
    if place.holder != e["holder"]:
        r.wrong("one_holder_per_lease", f"{place.ticket} belongs to {place.holder} but is granted to {e['holder']}")
    elif not place.present:
        r.wrong("one_holder_per_lease", f"{place.ticket} is granted but no holder waits on it")
    if (place.kind, place.score) != (e["kind"], e["score"]):
        was, now = f"{place.kind} with score {place.score}", f"{e['kind']} with score {e['score']}"
        r.wrong("no_place_lost", f"{place.ticket} was taken as {was} but is granted as {now}")


def _order(r: State, place: Place) -> None:
    if place.kind == WORKER and r.places.handlers:
        r.report.inversions += 1
        r.wrong("no_worker_while_handler_in_queue", f"the worker's {place.ticket} is granted")
    head = r.places.head()
    if head is not None and head.score < place.score:
        r.report.misorders += 1
        r.wrong(head.fifo, f"{place.ticket} is granted ahead of {head.ticket}")


def _skipped(r: State, e: Entry, place: Place) -> None:
    for ticket in e.get("skipped", ()):
        other = r.places.queue.get(ticket)
        if other is None or other.score > place.score:
            r.wrong(place.fifo, f"{place.ticket} is granted with {ticket} skipped, which is not ahead of it")


def claimed(r: State, e: Entry) -> None:
    if r.lease is None or (r.lease.fence, r.lease.ticket) != (e["fence"], e["ticket"]) or r.lease.claimed:
        r.wrong("release_only_by_owner", f"lease {e['fence']} is confirmed but is not the current unconfirmed lease")
    else:
        r.lease.claimed = True


def ended(r: State, e: Entry) -> None:
    fence, ticket, reason = e["fence"], e["ticket"], e["reason"]
    lease, was_open = r.lease, r.open
    r.report.preemptions += reason == "preempted"
    if lease is None or (lease.fence, lease.ticket, lease.kind) != (fence, ticket, e["kind"]):
        r.wrong("release_only_by_owner", f"lease {fence} of {ticket} ends but is not the current lease")
    elif (why := _wrong_reason(r, lease, reason)) is not None:
        r.wrong(*why)
    if bool(e.get("open", was_open)) != was_open:
        found = "open" if was_open else "not open"
        r.wrong("closed_means_nothing_can_come", f"lease {fence} ends with open={e['open']}, but its turn is {found}")
    place = r.places.out.get(ticket)
    if place is not None:
        place.losses = 0 if reason not in LOSSES else None if place.losses is None else place.losses + 1
    r.step.ended = Ended(fence, ticket, reason)
    r.step.undrained = bool(e.get("open", was_open))
    if lease is None or ticket == lease.ticket or fence == lease.fence:
        r.lease = None


def _wrong_reason(r: State, lease: Lease, reason: str) -> tuple[str, str] | None:
    what = f"the {lease.kind}'s lease {lease.fence} ends as {reason}"
    if reason == "preempted" and lease.kind == WORKER and not r.places.handlers and r.places.any_lapsed():
        return "lapsed_bars_nobody", f"{what}, but every handler's ticket in the queue has lapsed"
    if reason == "forced" and r.step.forced != lease.fence:
        return "force_release_frees", f"{what}, but no operator forced it"
    allowed = {
        "preempted": lease.kind == WORKER and r.places.handlers > 0,
        "unclaimed": not lease.claimed,
        "expired": lease.claimed is not False,
        "hold-limit": lease.kind != WORKER,
    }
    if reason not in ENDS_TICKET | allowed.keys() or not allowed.get(reason, True):
        return "release_only_by_owner", f"{what}, which its state does not allow"
    return None


def draining(r: State, e: Entry) -> None:
    over = r.step.ended
    if over is None or (over.fence, over.reason) != (e["fence"], e["why"]) or not r.step.undrained:
        r.wrong("no_grant_while_draining", f"lease {e['fence']} drains, but this step did not end it with a turn open")
    r.step.undrained = False
    r.drain = Drain(e["fence"], e["why"])


def drained(r: State, e: Entry) -> None:
    name = "closed_means_nothing_can_come"
    if r.drain is None or r.drain.fence != e["fence"]:
        r.wrong(name, f"lease {e['fence']} is drained but was not draining")
    elif r.open:
        r.wrong(name, f"lease {e['fence']} is drained while {r.turn.id if r.turn else 'a background task'} is open")
    elif e["how"] == "reaped" and not r.step.reaped:
        r.wrong(name, f"lease {e['fence']} is drained as reaped, but the agent was not reaped")
    r.drain, r.turn, r.tasks = None, None, False


def force_release(r: State, e: Entry) -> None:
    fence = e["fence"]
    if r.lease is not None and r.lease.fence == fence:
        r.step.forced = fence
    elif r.drain is not None and r.drain.fence == fence and not r.drain.forced:
        r.drain.forced = r.step.forced_drain = True
    else:
        r.wrong("force_release_frees", f"lease {fence} is force-released but is neither held nor draining")
