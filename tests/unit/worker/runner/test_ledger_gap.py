"""The ledger's entries between two leases of a task."""

from typing import Any

from sessiond_worker.runner import ledger_gap


def test_the_ledger_shows_who_held_the_lock_between_two_leases() -> None:
    def entry(event: str, **data: Any) -> dict[str, Any]:
        return {"id": f"{len(entries)}-0", "event": event, **data}

    entries: list[dict[str, Any]] = []
    for event, data in (
        ("taken", {"ticket": "tk-a", "key": "IC_a"}),
        ("ended", {"ticket": "tk-w", "fence": 9, "reason": "preempted"}),
        ("granted", {"ticket": "tk-a", "kind": "handler"}),
        ("ended", {"ticket": "tk-a", "fence": 10, "reason": "released"}),
        ("granted", {"ticket": "tk-old", "kind": "handler"}), ("granted", {"ticket": "tk-a", "kind": "handler"}),
        ("ended", {"ticket": "tk-other", "fence": 12, "reason": "preempted"}),
        ("granted", {"ticket": "tk-w", "kind": "worker"}),
    ):  # fmt: skip
        entries.append(entry(event, **data))
    found = ledger_gap.read(entries, "task-x-1", "tk-w")
    assert found == ledger_gap.LedgerGap((9,), ("IC_a", "tk-old"), "7-0")
