"""Reads a ledger and says whether the lock kept its rules. Pure, linear, and shares no code with the machine.

Works on the entries as HTTP gives them. A trimmed ledger is read from its first `snapshot` on. What
it counts as wrong is named as in the list of invariants in docs/architecture.md.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Report:
    """What was read. `violations` are (invariant, entry id, text)."""

    entries: int = 0
    handoffs: int = 0
    inversions: int = 0
    """Grants to the worker while a handler's ticket that had not lapsed was queued."""
    misorders: int = 0
    """Grants over a lower score that was neither passed over nor lapsed."""
    preemptions: int = 0
    order: list[str] = field(default_factory=list)
    """The granted tickets, in order."""
    violations: list[tuple[str, str, str]] = field(default_factory=list)


@dataclass(slots=True)
class _Place:
    kind: str
    score: int
    present: bool = False
    passed: bool = False
    lapsed: bool = False
    holder: str | None = None
    gone: set[str] = field(default_factory=set)


class Reader:
    """The lock as the ledger tells it, entry by entry; what comes before the first epoch or snapshot is skipped."""

    def __init__(self) -> None:
        self.report = Report()
        self.queue: dict[str, _Place] = {}
        self.out: dict[str, _Place] = {}
        self.fence = 0
        self.lease: tuple[int, str] | None = None
        self.draining = False
        self.end_reason = ""
        self.id = ""
        self._begun = False

    def wrong(self, invariant: str, text: str) -> None:
        self.report.violations.append((invariant, self.id, text))

    def place(self, ticket: str) -> _Place | None:
        return self.queue.get(ticket) or self.out.get(ticket)

    def read(self, entry: Mapping[str, Any]) -> None:
        """The next entry."""
        self._begun = self._begun or entry["event"] in ("epoch", "snapshot")
        if not self._begun:
            return
        self.id = str(entry["id"])
        self.report.entries += 1
        reader = _READERS.get(entry["event"])
        if reader is not None:
            reader(self, entry)

    def take(self) -> Report:
        """What was found since this was asked last."""
        found, self.report = self.report, Report()
        return found


def verify(entries: Iterable[Mapping[str, Any]]) -> Report:
    """Reads the entries in their order."""
    reader = Reader()
    for entry in entries:
        reader.read(entry)
    return reader.report


def _taken(r: Reader, e: Mapping[str, Any]) -> None:
    if r.place(e["ticket"]) is not None:
        r.wrong("no_place_lost", f"{e['ticket']} is taken twice")
    if r.queue and any(p.score == e["score"] for p in r.queue.values()):
        r.wrong("handler_fifo", f"{e['ticket']} has another's score")
    r.queue[e["ticket"]] = _Place(e["kind"], e["score"])


def _present(r: Reader, e: Mapping[str, Any]) -> None:
    place = r.place(e["ticket"])
    if place is None:
        r.wrong("no_place_lost", f"{e['ticket']} is present and has no place")
        return
    if e["holder"] in place.gone:
        r.wrong("supersede_is_one_way", f"{e['holder']} waits on {e['ticket']} again")
    place.present, place.passed, place.lapsed, place.holder = True, False, False, e["holder"]


def _absent(r: Reader, e: Mapping[str, Any]) -> None:
    if place := r.place(e["ticket"]):
        place.present = False


def _superseded(r: Reader, e: Mapping[str, Any]) -> None:
    if place := r.place(e["ticket"]):
        place.gone.add(e["holder"])
        place.present = False


def _passed(r: Reader, e: Mapping[str, Any]) -> None:
    place = r.queue.get(e["ticket"])
    if place is None or place.present:
        r.wrong("handler_fifo", f"{e['ticket']} is passed over and is {'present' if place else 'not in the queue'}")
    else:
        place.passed = True


def _lapsed(r: Reader, e: Mapping[str, Any]) -> None:
    if place := r.queue.get(e["ticket"]):
        place.lapsed = True


def _granted(r: Reader, e: Mapping[str, Any]) -> None:
    ticket, fence = e["ticket"], e["fence"]
    r.report.handoffs += 1
    r.report.order.append(ticket)
    if r.lease is not None:
        r.wrong("no_dual_ownership", f"{ticket} is granted while {r.lease[1]} holds")
    if r.draining:
        r.wrong("no_grant_while_draining", f"{ticket} is granted in draining")
    if fence <= r.fence:
        r.wrong("fence_grows", f"{fence} follows {r.fence}")
    place = r.queue.pop(ticket, None)
    if place is None:
        r.wrong("no_place_lost", f"{ticket} is granted and was not in the queue")
        place = _Place(e["kind"], e["score"])
    _order(r, ticket, place)
    if place.holder is not None and place.holder != e["holder"]:
        r.wrong("one_holder_per_lease", f"{ticket} is {place.holder}'s, granted to {e['holder']}")
    place.present = place.passed = False
    r.out[ticket], r.fence, r.lease = place, max(r.fence, fence), (fence, ticket)


def _order(r: Reader, ticket: str, place: _Place) -> None:
    if place.kind == "worker" and any(p.kind == "handler" and not p.lapsed for p in r.queue.values()):
        r.report.inversions += 1
        r.wrong("no_worker_while_handler_in_queue", f"{ticket} is a worker's")
    over = [t for t, p in r.queue.items() if p.score < place.score and (p.present or not (p.passed or p.lapsed))]
    if over:
        r.report.misorders += 1
        name = "worker_fifo" if all(r.queue[t].kind == "worker" for t in over) else "handler_fifo"
        r.wrong(name, f"{ticket} is granted over {', '.join(sorted(over))}")


def _ended(r: Reader, e: Mapping[str, Any]) -> None:
    if r.lease is None or r.lease[0] != e["fence"]:
        r.wrong("release_only_by_owner", f"lease {e['fence']} ends and does not live")
    r.lease = None
    r.end_reason = e["reason"]
    r.report.preemptions += e["reason"] == "preempted"
    if e["reason"] == "preempted" and e["kind"] != "worker":
        r.wrong("release_only_by_owner", "a handler is preempted")


def _draining(r: Reader, e: Mapping[str, Any]) -> None:
    r.draining = True


def _drained(r: Reader, e: Mapping[str, Any]) -> None:
    r.draining = False


def _back(r: Reader, e: Mapping[str, Any]) -> None:
    place = r.out.pop(e["ticket"], None)
    if place is None:
        r.wrong("no_place_lost", f"{e['ticket']} comes back and was not out")
        return
    if place.score != e["score"]:
        r.wrong("no_place_lost", f"{e['ticket']} comes back with score {e['score']}, had {place.score}")
    r.queue[e["ticket"]] = place
    # Rule 7: passed over unless preempted or waited on; what `granted` names as skipped is held against it.
    place.passed = not place.present and r.end_reason != "preempted"


def _ticket_ended(r: Reader, e: Mapping[str, Any]) -> None:
    if r.queue.pop(e["ticket"], None) is None and r.out.pop(e["ticket"], None) is None:
        r.wrong("no_place_lost", f"{e['ticket']} ends and has no place")


def _epoch(r: Reader, e: Mapping[str, Any]) -> None:
    for place in (*r.queue.values(), *r.out.values()):
        place.present = place.passed = False


def _snapshot(r: Reader, e: Mapping[str, Any]) -> None:
    lease, drain = e.get("lease"), e.get("drain")
    places = {
        t["id"]: _Place(
            t["kind"], t["score"], bool(t.get("present")), bool(t.get("passed")), bool(t["lapsed"]), t.get("holder"),
            set(t.get("superseded") or ()),
        )
        for t in e["tickets"]
    }  # fmt: skip
    leased = lease["ticket"] if lease else None
    r.out = {t: p for t, p in places.items() if t == leased}
    r.queue = {t: p for t, p in places.items() if t != leased}
    r.lease = (lease["fence"], lease["ticket"]) if lease else None
    r.draining = drain is not None
    r.fence = max(r.fence, e.get("fence") or 0)


_READERS: Mapping[str, Callable[[Reader, Mapping[str, Any]], None]] = {
    "taken": _taken,
    "present": _present,
    "absent": _absent,
    "superseded": _superseded,
    "passed-over": _passed,
    "lapsed": _lapsed,
    "granted": _granted,
    "ended": _ended,
    "draining": _draining,
    "drained": _drained,
    "back": _back,
    "ticket-ended": _ticket_ended,
    "epoch": _epoch,
    "snapshot": _snapshot,
}
