"""Builders of ledgers, entry by entry."""

from typing import Any

from support.lock.histories import Entries

Said = tuple[str, dict[str, Any]]
Steps = list[Said | list[Said]]
ARRIVALS = 2**42
EMPTY = {"tickets": [], "lease": None, "drain": None, "fence": 0, "turn": None, "tasks": False}


def entries_of(*steps: Said | list[Said]) -> Entries:
    """Return a ledger that starts with its first epoch. Each item of `steps` is one step."""
    found: Entries = []
    for version, step in enumerate([[("epoch", {}), ("snapshot", EMPTY)], *steps], 1):
        for event, data in step if isinstance(step, list) else [step]:
            found.append({"id": f"1-{len(found)}", "version": version, "epoch": 1, "event": event, **data})
    return found


def score(arrival: int, kind: str) -> int:
    return (5 if kind == "handler" else 30) * ARRIVALS + arrival


def taken(name: str, arrival: int, kind: str = "handler") -> Said:
    return "taken", {"ticket": name, "kind": kind, "score": score(arrival, kind)}


def present(name: str, holder: str = "p") -> Said:
    return "present", {"ticket": name, "holder": holder}


def granted(name: str, fence: int, arrival: int, kind: str = "handler", holder: str = "p") -> Said:
    data = {"ticket": name, "fence": fence, "score": score(arrival, kind), "kind": kind, "holder": holder}
    return "granted", {**data, "skipped": []}


def ended(name: str, fence: int, reason: str = "released", kind: str = "handler", open: bool = False) -> Said:
    return "ended", {"ticket": name, "fence": fence, "reason": reason, "kind": kind, "open": open}


def over(name: str, reason: str = "released") -> Said:
    return "ticket-ended", {"ticket": name, "reason": reason}


def draining(fence: int = 1, why: str = "released") -> Said:
    return "draining", {"fence": fence, "why": why}


def drained(fence: int = 1, how: str = "closed") -> Said:
    return "drained", {"fence": fence, "how": how}


def forced(fence: int = 1) -> Said:
    return "force-release", {"fence": fence, "why": "x", "by": "y"}


def accepted(turn: str, fence: int = 1, name: str = "a", kind: str = "handler") -> Said:
    return "turn-accepted", {"turn": turn, "fence": fence, "ticket": name, "kind": kind}


def started(turn: str) -> Said:
    return "turn-started", {"turn": turn}


def interrupted(turn: str, why: str = "cancelled") -> Said:
    return "interrupt", {"turn": turn, "why": why}


def closed(turn: str, outcome: str = "completed", reason: str | None = None, **more: Any) -> Said:
    data = {"turn": turn, "fence": 1, "kind": "handler", "outcome": outcome, "reason": reason, "text_chars": 3}
    return "turn-closed", {**data, **more}


def long_ledger(queued: int, grants: int) -> Entries:
    """Return a ledger with `queued` handlers that are passed over while `grants` tickets behind them are granted."""
    steps: Steps = [taken(f"q{n}", n + 1) for n in range(queued)]
    steps += [[taken("z", queued + 1), present("z")]]
    steps += [("passed-over", {"ticket": f"q{n}"}) for n in range(queued - 1)]
    last: list[Said] = [("passed-over", {"ticket": f"q{queued - 1}"}), granted("z", 1, queued + 1)]
    steps.append(last)
    for fence in range(1, grants):
        name, after = ("z" if fence == 1 else f"z{fence}"), f"z{fence + 1}"
        steps.append([taken(after, queued + 1 + fence), present(after)])
        steps.append([ended(name, fence), over(name), granted(after, fence + 1, queued + 1 + fence)])
    return entries_of(*steps)
