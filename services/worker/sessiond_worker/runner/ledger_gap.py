"""What a session's ledger says of a task's ticket since it was last read: preemptions, and who had the lock. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Meanwhile:
    """`preempted`: fences of the task's leases that handlers ended; `handlers`: keys of the handlers' tickets that had
    the lock, in their order; `last`: id of the last entry read."""

    preempted: tuple[int, ...] = ()
    handlers: tuple[str, ...] = ()
    last: str | None = None


def read(entries: Iterable[Mapping[str, Any]], key: str, ticket: str) -> Meanwhile:
    """Of the task whose tickets have this key, and which has this ticket now.

    Read from the task's last grant on, so every handler's lease in it came between two of the task's own. A ticket
    that was taken before that is named by its id.
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
    return Meanwhile(tuple(preempted), tuple(handlers), last)
