"""The checker reports each altered ledger by invariant and entry, and reports nothing about a correct one."""

import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from sessiond.verify import Reader, Unreadable, verify
from support.lock.alterations import detected
from support.lock.histories import Entries, random_history
from support.lock.ledgers import (
    EMPTY,
    Said,
    Steps,
    accepted,
    closed,
    drained,
    draining,
    ended,
    entries_of,
    forced,
    granted,
    interrupted,
    long_ledger,
    over,
    present,
    score,
    started,
    taken,
)
from support.servers import TESTS
from support.size import FULL

Altered = tuple[str, Steps] | tuple[str, Steps, int]
"""The invariant, the ledger, and the index of the entry that breaks it (the last one by default)."""
SEEDS = range(40 if FULL else 8)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_correct_ledger_is_clean_from_any_entry_on(seed: int) -> None:
    """A trimmed ledger may begin anywhere, also within a step. It is read from its first snapshot on."""
    entries = random_history(seed, 250)
    report = verify(entries)
    assert report.violations == []
    assert (report.entries, report.handoffs) == (len(entries), sum(e["event"] == "granted" for e in entries))
    for cut in range(1, len(entries), 9 if FULL else 31):
        rest = entries[cut:]
        assert verify(rest).violations == [], cut
        begins = [n for n, e in enumerate(rest) if e["event"] in ("epoch", "snapshot")]
        assert verify(rest).entries == (len(rest) - begins[0] if begins else 0)


LAPSED: Said = ("lapsed", {"ticket": "h"})
BACK: Said = ("back", {"ticket": "a", "score": score(1, "handler")})
RUNS: list[Said] = [("agent-starting", {}), ("agent-started", {})]
TASKS: Said = ("tasks", {"running": True})
HELD: Steps = [taken("a", 1), [present("a"), granted("a", 1, 1)]]
IN_TURN: Steps = [*HELD, accepted("t"), *RUNS, started("t")]
DRAINING = [ended("a", 1, open=True), draining(), over("a"), interrupted("t", "released")]
WORKER: Steps = [
    taken("w", 1, "worker"),
    [present("w"), granted("w", 1, 1, "worker")],
]
ALTERED: list[Altered] = [
    ("no_worker_while_handler_in_queue", [taken("h", 1), taken("w", 2, "worker"), present("w"),
        granted("w", 1, 2, "worker")]),
    ("no_worker_while_handler_in_queue", [*WORKER, taken("h", 2)]),
    ("handler_fifo", [taken("a", 1), taken("b", 2), present("b"), granted("b", 1, 2)]),
    ("handler_fifo", [taken("a", 2), taken("b", 1)]),
    ("handler_fifo", [taken("a", 1), ("passed-over", {"ticket": "a"})]),
    ("handler_fifo", [*HELD, taken("b", 2), taken("c", 3), present("c"), ("passed-over", {"ticket": "b"})]),
    ("worker_fifo", [taken("v", 1, "worker"), taken("w", 2, "worker"), present("w"), granted("w", 1, 2, "worker")]),
    ("no_dual_ownership", [*HELD, taken("b", 2), present("b"), granted("b", 2, 2)]),
    ("fence_grows", [*HELD, [ended("a", 1), over("a")], taken("b", 2), [present("b"), granted("b", 1, 2)]]),
    ("fence_grows", [taken("a", 1), [present("a"), granted("a", 3, 1)]]),
    ("no_grant_while_draining", [*IN_TURN, DRAINING, taken("b", 2), [present("b"), granted("b", 2, 2)]]),
    ("no_grant_while_draining", [*HELD, TASKS, [ended("a", 1, open=True), over("a")]]),
    ("release_only_by_owner", [*HELD, [ended("a", 7), over("a")]], -2),
    ("release_only_by_owner", [*HELD, [ended("a", 1, "preempted"), BACK]], -2),
    ("release_only_by_owner", [*HELD, [ended("a", 1, "expired"), BACK]], -2),
    ("one_holder_per_lease", [taken("a", 1), [present("a", "p"), granted("a", 1, 1, holder="q")]]),
    ("one_holder_per_lease", [taken("a", 1), granted("a", 1, 1)]),
    ("no_place_lost", [*HELD, [ended("a", 1, "unclaimed"), ("back", {"ticket": "a", "score": score(9, "handler")})]]),
    ("no_place_lost", [*HELD, ended("a", 1, "unclaimed")]),
    ("no_place_lost", [*HELD, *[[ended("a", n, "unclaimed"), BACK] if lost else [present("a"), granted("a", n + 1, 1)]
        for n in (1, 2, 3) for lost in (True, False)][:-1]]),
    ("no_place_lost", [taken("a", 1), over("a", "forced")]),
    ("no_place_lost", [taken("a", 1), taken("a", 2)]),
    ("no_place_lost", [taken("a", 1), ("snapshot", EMPTY)]),
    ("supersede_is_one_way", [taken("a", 1), taken("b", 2), present("b", "p"),
        ("superseded", {"ticket": "b", "holder": "p", "by": "q"}), present("b", "p")]),
    ("supersede_is_one_way", [taken("a", 1), taken("b", 2), present("b", "p"), ("absent", {"ticket": "b"}),
        present("b", "q")]),
    ("lapsed_bars_nobody", [taken("h", 1), taken("w", 2, "worker"), present("w"), LAPSED]),
    ("lapsed_bars_nobody", [taken("h", 1), LAPSED, taken("b", 2), ("passed-over", {"ticket": "h"})]),
    ("lapsed_bars_nobody", [taken("h", 2), LAPSED, taken("w", 3, "worker"),
        [present("w"), granted("w", 1, 3, "worker")],
        [ended("w", 1, "preempted", "worker"), ("back", {"ticket": "w", "score": score(3, "worker")})]], -2),
    ("lapsed_bars_nobody", [taken("h", 1), LAPSED, LAPSED]),
    ("lapsed_bars_nobody", [*HELD, taken("h", 2), LAPSED]),
    ("force_release_frees", [*HELD, forced()]),
    ("force_release_frees", [*HELD, forced(7)]),
    ("force_release_frees", [*HELD, [ended("a", 1, "forced"), over("a", "forced")]], -2),
    ("force_release_frees", [*IN_TURN, DRAINING, forced()]),
    ("force_release_frees", [*IN_TURN, DRAINING, [forced(), ("agent-stopping", {})], forced()]),
    ("every_present_ticket_is_served", [taken("a", 1), present("a")]),
    ("every_present_ticket_is_served", [*HELD, taken("b", 2), present("b"), [ended("a", 1), over("a")]]),
    ("every_present_ticket_is_served", [*IN_TURN, DRAINING, closed("t", "cancelled", "released",
        interrupt_to_ack_ms=1)]),
    ("single_writer", [*HELD, accepted("t", fence=7)]),
    ("single_writer", [accepted("t")]),
    ("single_writer", [taken("a", 1), ("taken", {**taken("b", 2)[1], "version": 9})]),
    ("single_writer", [taken("a", 1), ("taken", {**taken("b", 2)[1], "version": 1})]),
    ("single_writer", [taken("a", 1), ("taken", {**taken("b", 2)[1], "epoch": 2})]),
    ("single_writer", [taken("a", 1), ("taken", {**taken("b", 2)[1], "epoch": 0})]),
    ("single_writer", [taken("a", 1), ("taken", {**taken("b", 2)[1], "id": "0-5"})]),
    ("single_writer", [taken("a", 1), ("epoch", {"epoch": 2})]),
    ("single_writer", [taken("a", 1), [("epoch", {}), ("snapshot", {**EMPTY, "tickets": [
        {"id": "a", "kind": "handler", "score": score(1, "handler"), "lapsed": False}]})]], -2),
    ("one_agent_per_conversation", [*RUNS, ("agent-starting", {})]),
    ("one_agent_per_conversation", [*RUNS, ("agent-started", {})]),
    ("one_agent_per_conversation", [*RUNS, ("agent-reaped", {}), ("agent-reaped", {})]),
    ("one_agent_per_conversation", [*RUNS, ("agent-stopping", {}), ("agent-stopping", {})]),
    ("one_agent_per_conversation", [*RUNS, ("agent-killed", {})]),
    ("one_agent_per_conversation", [*RUNS, [("epoch", {"epoch": 2}), ("snapshot", {**EMPTY, "epoch": 2})],
        ("agent-starting", {"epoch": 2})]),
    ("one_agent_per_conversation", [*HELD, accepted("t"), RUNS[0], started("t")]),
    ("one_turn_open", [*IN_TURN, accepted("u")]),
    ("result_belongs_to_its_turn", [*IN_TURN, closed("u")]),
    ("result_belongs_to_its_turn", [*IN_TURN, closed("t", fence=7)]),
    ("result_belongs_to_its_turn", [*HELD, accepted("t"), *RUNS, closed("t")]),
    ("result_belongs_to_its_turn", [*IN_TURN, started("u")]),
    ("cancel_stays_in_its_turn", [*IN_TURN, interrupted("u")]),
    ("cancel_stays_in_its_turn", [*IN_TURN, interrupted("t"), interrupted("t")]),
    ("cancel_stays_in_its_turn", [*IN_TURN, closed("t"), interrupted("t")]),
    ("cancel_stays_in_its_turn", [*IN_TURN, closed("t", "cancelled", "preempted")]),
    ("cancel_stays_in_its_turn", [*IN_TURN, DRAINING, closed("t", "cancelled", "forced", interrupt_to_ack_ms=1)]),
    ("closed_means_nothing_can_come", [*IN_TURN, DRAINING, drained()]),
    ("closed_means_nothing_can_come", [*IN_TURN, interrupted("t"), closed("t", "cancelled", "cancelled")]),
    ("closed_means_nothing_can_come", [*IN_TURN, closed("t"), started("t")]),
    ("closed_means_nothing_can_come", [*IN_TURN, closed("t", "lost")]),
    ("closed_means_nothing_can_come", [*HELD, [ended("a", 1, open=True), over("a")]], -2),
    ("empty_result_is_not_completion", [*IN_TURN, closed("t", text_chars=0)]),
    ("nothing_outlives_its_lease", [*IN_TURN, DRAINING[:3]]),
    ("nothing_outlives_its_lease", [TASKS, taken("a", 1), [present("a"), granted("a", 1, 1)]]),
    ("nothing_outlives_its_lease", [*IN_TURN, [ended("a", 1), over("a")]]),
]  # fmt: skip
NAMES = [f"{name}-{sum(other == name for other, *_ in ALTERED[:n])}" for n, (name, *_) in enumerate(ALTERED)]


@pytest.mark.parametrize("altered", ALTERED, ids=NAMES)
def test_an_altered_ledger_is_reported_by_invariant_and_entry(altered: Altered) -> None:
    name, said, *at = altered
    entries = entries_of(*said)
    found = [violation[:2] for violation in verify(entries).violations]
    assert (name, entries[at[0] if at else -1]["id"]) in found, found
    last = [e["id"] for e in entries if e["version"] == entries[-1]["version"]]
    assert {entry for _, entry in found} <= set(last), "only the last step has violations"


def test_every_invariant_has_an_altered_ledger() -> None:
    """docs/concepts/invariants.md lists 13 invariants of the lock and 8 of the agent."""
    page = (TESTS.parent / "docs" / "concepts" / "invariants.md").read_text()
    listed = page.partition("## Invariants")[2].partition("##")[0]
    assert {name for name, *_ in ALTERED} == set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", listed))


@pytest.mark.parametrize("altered", ALTERED, ids=NAMES)
def test_reading_in_pieces_reports_each_violation_once(altered: Altered) -> None:
    entries, reader, found = entries_of(*altered[1]), Reader(), []
    for entry in entries:
        reader.read(entry)
        found += reader.take().violations
    for _ in range(2):
        reader.step_over()
        found += reader.take().violations
    assert found == verify(entries).violations


def test_entries_that_redis_lost_are_not_a_violation_after_a_restore() -> None:
    """Two handoffs are missing in the stream. The snapshot after `restored` includes them."""
    ticket = {"id": "c", "kind": "handler", "score": score(3, "handler"), "lapsed": False, "holder": "p"}
    lease = {"fence": 3, "ticket": "c", "kind": "handler", "claimed": True}
    entries = entries_of(
        *HELD,
        [("restored", {}), ("snapshot", {**EMPTY, "tickets": [ticket], "lease": lease, "fence": 3})],
        [ended("c", 3), over("c")],
        taken("d", 4),
        [present("d"), granted("d", 4, 4)],
    )
    for entry in entries[5:]:
        entry["version"] += 20
    assert verify(entries).violations == []
    bare = [e for e in entries if e["event"] != "restored"]
    assert {name for name, _, _ in verify(bare).violations} >= {"single_writer", "no_place_lost", "no_dual_ownership"}


# ---- random alterations of correct ledgers ---------------------------------------------------


@pytest.mark.parametrize("seed", range(3 if FULL else 1))
def test_most_single_alterations_of_a_correct_ledger_are_detected(seed: int, figures: Callable[[str], None]) -> None:
    found = detected(random_history(100 + seed, 200), 60 if FULL else 15, seed)
    figures("noticed: " + ", ".join(f"{name} {n}/{of}" for name, (n, of) in found.items()))
    noticed, tried = (sum(column) for column in zip(*found.values(), strict=True))
    assert noticed > 0.8 * tried


JUNK = (None, "x", "", -1, 1.5, [], {}, [1], {"id": 1}, True, 2**70, "9" * 40, float("inf"))


@pytest.mark.parametrize("seed", range(4 if FULL else 2))
def test_any_field_value_is_either_read_or_reported_as_unreadable(seed: int) -> None:
    dice, honest = random.Random(seed), random_history(seed, 150)
    refused: Counter[bool] = Counter()
    for _ in range(400 if FULL else 150):
        entries = [dict(e) for e in honest]
        entry = dice.choice(entries)
        field = dice.choice(list(entry))
        if dice.random() < 0.3:
            del entry[field]
        else:
            entry[field] = dice.choice(JUNK)
        try:
            verify(entries)
            refused[False] += 1
        except Unreadable as error:
            assert "\n" not in str(error)
            refused[True] += 1
    assert min(refused[True], refused[False]) > 10


# ---- cost ------------------------------------------------------------------------------------


def work(entries: Entries) -> int:
    """Return the number of Python lines and calls that reading takes."""
    count = 0

    def trace(*_: Any) -> Any:
        nonlocal count
        count += 1
        return trace

    reader = Reader()
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        for entry in entries:
            reader.read(entry)
        reader.step_over()
    finally:
        sys.settrace(before)
    assert reader.report.violations == []
    return count


def cpu(entries: Entries) -> float:
    """Return the CPU seconds that reading takes."""
    begun = time.process_time()
    verify(entries)
    return time.process_time() - begun


def test_the_cost_of_an_entry_does_not_depend_on_the_queue_length(figures: Callable[[str], None]) -> None:
    sizes = [(50, 100), (500, 1000), (5000, 10_000)] if FULL else [(50, 100), (500, 1000)]
    costs, seconds = [], []
    for queued, grants in sizes:
        entries = long_ledger(queued, grants)
        costs.append(work(entries) / len(entries))
        seconds.append(min(cpu(entries) for _ in range(3)) / len(entries))
        figures(
            f"{len(entries)} entries, {queued} queued: {costs[-1]:.1f} lines of work an entry, "
            f"{seconds[-1] * 1e6:.0f} us of CPU"
        )
    assert max(costs) < 1.1 * min(costs)
    # The cost of a single Python line may grow too, such as a sort or a copy.
    assert max(seconds) < 3 * min(seconds)
