"""What a ledger's entries say about grants: counts, handoffs and their order."""

from collections import Counter
from itertools import pairwise
from typing import Any

Entries = list[dict[str, Any]]
Counts = Counter[tuple[str, ...]]


def count_events(entries: Entries, event: str, *fields: str) -> Counts:
    """Count the entries with this event, by the values of these fields."""
    return Counter(tuple(str(entry[field]) for field in fields) for entry in entries if entry["event"] == event)


def count_handoffs(ledgers: list[Entries]) -> Counts:
    """Count the grants by (kind before, kind). Each ledger starts with `nobody`."""
    handoffs: Counts = Counter()
    for ledger in ledgers:
        kinds = ["nobody", *(entry["kind"] for entry in ledger if entry["event"] == "granted")]
        handoffs += Counter(pairwise(kinds))
    return handoffs


def check_grant_order(ledger: Entries) -> set[str]:
    """Check that first grants to handlers follow the order of their tickets. Returns the keys of the granted ones.

    Tickets that were passed over or put back are left out: their handlers died or lost their leases.
    """
    keys = {e["ticket"]: e["key"] for e in ledger if e["event"] == "taken" and e["kind"] == "handler"}
    late = {e["ticket"] for e in ledger if e["event"] in ("passed-over", "back")}
    first = dict.fromkeys(e["ticket"] for e in ledger if e["event"] == "granted" and e["ticket"] in keys)
    on_time = [ticket for ticket in first if ticket not in late]
    assert on_time == [ticket for ticket in keys if ticket in set(on_time)], on_time
    return {keys[ticket] for ticket in first}
