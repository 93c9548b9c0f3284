"""Random alterations of one entry of a correct ledger, and how often the checker detects them."""

import random
from collections.abc import Callable

from sessiond.verify import verify
from support.lock.histories import Entries

Alteration = Callable[[random.Random, Entries, int], None]
"""Alters the ledger at, or near, this entry."""


def drop(dice: random.Random, entries: Entries, at: int) -> None:
    """Remove the entry, but not the rest of its step."""
    del entries[at]


def swap(dice: random.Random, entries: Entries, at: int) -> None:
    """Swap two adjacent entries. Ids and versions stay."""
    other = min(at + 1, len(entries) - 1)
    fixed = [{n: entries[i][n] for n in ("id", "version", "epoch")} for i in (at, other)]
    entries[at], entries[other] = {**entries[other], **fixed[0]}, {**entries[at], **fixed[1]}


def repeat(dice: random.Random, entries: Entries, at: int) -> None:
    """Repeat the entry, with its own id."""
    entries.insert(at + 1, {**entries[at], "id": f"{entries[at]['id']}"})
    for number, entry in enumerate(entries):
        entry["id"] = f"{entry['epoch']}-{number}"


def change(field: str) -> Alteration:
    def changed(dice: random.Random, entries: Entries, at: int) -> None:
        """Replace the field's value with that of another entry."""
        having = [n for n, e in enumerate(entries) if field in e]
        near = min(having, key=lambda n: abs(n - at))
        others = [entries[n][field] for n in having if entries[n][field] != entries[near][field]]
        entries[near][field] = dice.choice(others)

    return changed


ALTERATIONS: dict[str, Alteration] = {
    "drop": drop, "swap": swap, "repeat": repeat,
    **{f"another {name}": change(name) for name in ("score", "fence", "ticket", "kind", "holder", "turn", "version")},
}  # fmt: skip
SILENT = frozenset({"denied", "foreign", "fault"})
"""Entries that no rule depends on."""


def detected(honest: Entries, rounds: int, seed: int) -> dict[str, tuple[int, int]]:
    """Return, by alteration, (how many were detected, how many were tried)."""
    dice, found = random.Random(seed), {}
    places = [n for n, e in enumerate(honest) if e["event"] not in SILENT]
    for name, alter in ALTERATIONS.items():
        noticed = 0
        for _ in range(rounds):
            entries = [dict(e) for e in honest]
            alter(dice, entries, dice.choice(places))
            noticed += bool(verify(entries).violations)
        found[name] = (noticed, rounds)
    return found
