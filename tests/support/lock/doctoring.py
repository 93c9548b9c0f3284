"""One entry of an honest ledger altered at random, and how often the checker notices it."""

import random
from collections.abc import Callable

from sessiond.verify import verify
from support.lock.histories import Entries

Doctor = Callable[[random.Random, Entries, int], None]
"""Alters the ledger at, or near, this entry."""


def drop(dice: random.Random, entries: Entries, at: int) -> None:
    """The entry never was; the rest of its step stands."""
    del entries[at]


def swap(dice: random.Random, entries: Entries, at: int) -> None:
    """Two neighbours change places; ids and versions stay."""
    other = min(at + 1, len(entries) - 1)
    fixed = [{n: entries[i][n] for n in ("id", "version", "epoch")} for i in (at, other)]
    entries[at], entries[other] = {**entries[other], **fixed[0]}, {**entries[at], **fixed[1]}


def repeat(dice: random.Random, entries: Entries, at: int) -> None:
    """The entry stands twice, with an id of its own."""
    entries.insert(at + 1, {**entries[at], "id": f"{entries[at]['id']}"})
    for number, entry in enumerate(entries):
        entry["id"] = f"{entry['epoch']}-{number}"


def change(field: str) -> Doctor:
    def changed(dice: random.Random, entries: Entries, at: int) -> None:
        """The field has what another entry has there."""
        having = [n for n, e in enumerate(entries) if field in e]
        near = min(having, key=lambda n: abs(n - at))
        others = [entries[n][field] for n in having if entries[n][field] != entries[near][field]]
        entries[near][field] = dice.choice(others)

    return changed


DOCTORS: dict[str, Doctor] = {
    "drop": drop, "swap": swap, "repeat": repeat,
    **{f"another {name}": change(name) for name in ("score", "fence", "ticket", "kind", "holder", "turn", "version")},
}  # fmt: skip
SILENT = frozenset({"denied", "foreign", "fault"})
"""Entries that say nothing about the rules."""


def shares(honest: Entries, rounds: int, seed: int) -> dict[str, tuple[int, int]]:
    """By doctoring: how many of so many were noticed."""
    dice, found = random.Random(seed), {}
    places = [n for n, e in enumerate(honest) if e["event"] not in SILENT]
    for name, doctor in DOCTORS.items():
        noticed = 0
        for _ in range(rounds):
            entries = [dict(e) for e in honest]
            doctor(dice, entries, dice.choice(places))
            noticed += bool(verify(entries).violations)
        found[name] = (noticed, rounds)
    return found
