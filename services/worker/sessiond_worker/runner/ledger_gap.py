"""Reads what happened in a session between two leases of a task: preemptions, and handlers that had the lock. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class LedgerGap:
    """What happened between two leases.

    `preempted`: fences of the task's leases that were preempted. `handlers`: keys of the handlers' tickets that had the
    lock, in their order. `last`: id of the last entry read.
    """

    preempted: tuple[int, ...] = ()
    handlers: tuple[str, ...] = ()
    last: str | None = None


def read(entries: Iterable[Mapping[str, Any]], key: str, ticket: str) -> LedgerGap:
    """Read the entries since the task's last grant. The task's tickets have `key`, and its present one has id `ticket`.

    So every handler's lease in these entries lies between two leases of the task. A handler's ticket that was taken
    before the first entry is named by its id.
    """
    names = {ticket: key}
    preempted: list[int] = []
    handlers: list[str] = []
    last = None
    for entry in entries:
        last = str(entry["id"])
        match entry["event"]:
            case "taken":
                names[entry["ticket"]] = str(entry.get("key") or entry["ticket"])
            case "ended" if entry["reason"] == "preempted" and names.get(entry["ticket"]) == key:
                preempted.append(int(entry["fence"]))
            case "granted" if entry["kind"] == "handler":
                name = names.get(entry["ticket"], str(entry["ticket"]))
                if name not in handlers:
                    handlers.append(name)
    return LedgerGap(tuple(preempted), tuple(handlers), last)
