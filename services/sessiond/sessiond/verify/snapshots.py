"""Checks of epochs, restores and snapshots.

A snapshot is compared with the state that the entries before it describe. From then on the snapshot's state counts.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from sessiond.verify.places import Place, Places
from sessiond.verify.state import Agent, Drain, Lease, Life, OpenTurn, State
from sessiond.verify.tickets import ARRIVALS

Entry = Mapping[str, Any]


def epoch(r: State, _: Entry) -> None:
    """Begin an epoch: clear presence and passed-over marks. A recorded agent must be reaped before the next start."""
    r.step.began = "epoch"
    r.places.forget_presence()
    left = r.agent.life in (Life.STARTED, Life.LEFT)
    r.agent = Agent(Life.LEFT, stopping=True) if left else Agent()


def restored(r: State, _: Entry) -> None:
    """Handle a restore: Redis lost writes and their ledger entries, so only the next snapshot gives the state."""
    r.step.began = "restored"
    r.known = False
    r.agent = Agent()


def snapshot(r: State, e: Entry) -> None:
    lease, drain, turn, fence = e["lease"], e["drain"], e["turn"], e["fence"]
    places = [_place(t, lease) for t in e["tickets"]]
    if r.known:
        _compare(r, e, places)
    else:
        r.lease = r.drain = r.turn = None
    if turn is None:
        r.turn = None
    elif r.turn is None or r.turn.id != turn:
        holds = lease or drain
        r.turn = OpenTurn(turn, holds["fence"] if holds else None)
    if lease is None:
        r.lease = None
    elif r.lease is None or r.lease.fence != lease["fence"]:
        r.lease = Lease(lease["fence"], lease["ticket"], lease["kind"], None, lease.get("claimed"))
    if drain is None:
        r.drain = None
    elif r.drain is None or r.drain.fence != drain["fence"]:
        r.drain = Drain(drain["fence"], drain["why"])
    r.places, r.tasks = Places(places), bool(e.get("tasks"))
    r.fence = max(r.fence, fence)
    r.arrival = max([r.arrival, *(p.score % ARRIVALS for p in places)])
    r.known = r.step.snapshot = True


def _place(t: Mapping[str, Any], lease: Mapping[str, Any] | None) -> Place:
    return Place(
        t["id"], t["kind"], t["score"], bool(t.get("present")), bool(t.get("passed")), bool(t["lapsed"]),
        t.get("holder"), set(t.get("superseded") or ()), t.get("losses"),
        queued=lease is None or lease["ticket"] != t["id"],
    )  # fmt: skip


def _compare(r: State, e: Entry, places: Iterable[Place]) -> None:
    """Report each difference under the invariant that it breaks."""
    lease, drain = e["lease"], e["drain"]
    expected = (r.lease and (r.lease.fence, r.lease.ticket), r.drain and r.drain.fence, r.turn and r.turn.id, r.tasks)
    found = (
        lease and (lease["fence"], lease["ticket"]), drain and drain["fence"], e["turn"], bool(e.get("tasks", r.tasks))
    )  # fmt: skip
    names = ("no_dual_ownership", "no_grant_while_draining", "one_turn_open", "nothing_outlives_its_lease")
    for name, before, now in zip(names, expected, found, strict=True):
        if before != now:
            r.wrong(name, f"the snapshot has {now}, the entries before it give {before}")
    if e["fence"] < r.fence or (e["fence"] > r.fence and r.step.began is None):
        r.wrong("fence_grows", f"the snapshot has fence {e['fence']}, the entries before it give {r.fence}")
    _compare_places(r, places)


def _compare_places(r: State, places: Iterable[Place]) -> None:
    found = {place.ticket: place for place in places}
    for place in r.places.all():
        if place.ticket not in found:
            r.wrong("no_place_lost", f"{place.ticket} is not in the snapshot")
    for ticket, place in found.items():
        _compare_place(r, r.places.find(ticket), place)


def _compare_place(r: State, old: Place | None, new: Place) -> None:
    if old is None or (old.kind, old.score, old.queued) != (new.kind, new.score, new.queued):
        r.wrong("no_place_lost", f"{new.ticket} is new in the snapshot, or has another kind, score or place")
    elif old.gone != new.gone:
        r.wrong("supersede_is_one_way", f"{new.ticket} has other superseded holders in the snapshot")
    elif old.lapsed != new.lapsed:
        r.wrong("lapsed_bars_nobody", f"{new.ticket} has {'' if new.lapsed else 'not '}lapsed in the snapshot")
    elif old.holder != new.holder:
        r.wrong("one_holder_per_lease", f"{new.ticket} belongs to {new.holder} in the snapshot, to {old.holder} before")
    elif (old.present, old.passed) != (new.present, new.passed):
        r.wrong(new.fifo, f"{new.ticket} has another presence or passed-over mark in the snapshot")
    elif old.losses is not None and new.losses is not None and old.losses != new.losses:
        r.wrong("no_place_lost", f"{new.ticket} has lost {new.losses} leases in the snapshot, {old.losses} before")
