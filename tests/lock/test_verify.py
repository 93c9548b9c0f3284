"""The ledger's checker objects to each doctored ledger by the invariant's name, and to no honest one."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from sessiond.lock import events as ev
from sessiond.lock.machine import decide
from sessiond.lock.reading import timers
from sessiond.lock.rules import Kind, Times, rank_of
from sessiond.lock.state import Lock
from sessiond.verify import Reader, verify

Entries = list[dict[str, Any]]


def entries_of(*said: tuple[str, dict[str, Any]]) -> Entries:
    whole = [("epoch", {}), *said]
    return [{"id": f"1-{n}", "version": n, "epoch": 1, "event": name, **data} for n, (name, data) in enumerate(whole)]


def random_history(seed: int, steps: int = 400) -> Entries:
    """An honest ledger, of random events on the machine."""
    dice, lock, said = random.Random(seed), Lock(), []
    for number in range(steps):
        names = list(lock.tickets)
        kind = dice.choice((Kind.HANDLER, Kind.HANDLER, Kind.WORKER))
        choices: list[ev.Event] = [ev.Take(f"t{number}", kind, rank_of(kind, dice.choice((3, 5))))]
        if names:
            name, holder = dice.choice(names), dice.choice(("a", "b"))
            choices += [ev.Wait(name, holder)] * 5 + [
                ev.HangUp(name, holder),
                ev.WaitOver(name, holder),
                ev.Withdraw(name),
            ]
        if lock.lease is not None:
            fence = lock.lease.fence
            choices += [ev.Release(fence), ev.Claim(fence), ev.AcceptTurn(fence, "t"), ev.ForceRelease(fence)]
        if lock.turn is not None:
            choices += [ev.TurnClosed(lock.turn)] * 3 + [ev.Reaped()]
        choices += [ev.Due(t) for t in timers(lock, Times())]
        try:
            step = decide(lock, dice.choice(choices))
        except ev.Refused:
            continue
        lock = step.lock
        said += step.ledger
    return entries_of(*said)


@pytest.mark.parametrize("seed", range(40))
def test_an_honest_ledger_is_clean(seed: int) -> None:
    report = verify(random_history(seed))
    assert report.handoffs > 20
    assert report.violations == []


def taken(name: str, score: int, kind: str = "handler") -> tuple[str, dict[str, Any]]:
    return "taken", {"ticket": name, "kind": kind, "score": score}


def present(name: str, holder: str = "p") -> tuple[str, dict[str, Any]]:
    return "present", {"ticket": name, "holder": holder}


def granted(name: str, fence: int, score: int, kind: str = "handler", holder: str = "p") -> tuple[str, dict[str, Any]]:
    return "granted", {"ticket": name, "fence": fence, "score": score, "kind": kind, "holder": holder}


def ended(name: str, fence: int, reason: str = "released", kind: str = "handler") -> tuple[str, dict[str, Any]]:
    return "ended", {"ticket": name, "fence": fence, "reason": reason, "kind": kind}


DRAINING = ("draining", {"fence": 1, "why": "released"})
HELD = [taken("a", 1), present("a"), granted("a", 1, 1)]
DOCTORED: list[tuple[str, list[tuple[str, dict[str, Any]]]]] = [
    (
        "no_worker_while_handler_in_queue",
        [
            taken("h", 1),
            taken("w", 99, "worker"),
            present("w"),
            ("passed-over", {"ticket": "h"}),
            granted("w", 1, 99, "worker"),
        ],
    ),
    ("handler_fifo", [taken("a", 1), taken("b", 2), present("a"), present("b"), granted("b", 1, 2)]),
    ("worker_fifo", [taken("v", 98, "worker"), taken("w", 99, "worker"), present("w"), granted("w", 1, 99, "worker")]),
    ("no_dual_ownership", [*HELD, taken("b", 2), present("b"), granted("b", 2, 2)]),
    ("fence_grows", [*HELD, ended("a", 1), taken("b", 2), granted("b", 1, 2)]),
    ("no_grant_while_draining", [*HELD, ended("a", 1), DRAINING, taken("b", 2), granted("b", 2, 2)]),
    ("release_only_by_owner", [*HELD, ended("a", 7)]),
    ("one_holder_per_lease", [taken("a", 1), present("a", "p"), granted("a", 1, 1, holder="q")]),
    ("no_place_lost", [*HELD, ended("a", 1, "expired"), ("back", {"ticket": "a", "score": 9})]),
    (
        "supersede_is_one_way",
        [taken("a", 1), present("a"), ("superseded", {"ticket": "a", "holder": "p", "by": "q"}), present("a", "p")],
    ),
]


@pytest.mark.parametrize(("name", "said"), DOCTORED, ids=[name for name, _ in DOCTORED])
def test_a_doctored_ledger_is_objected_to_by_name(name: str, said: list[tuple[str, dict[str, Any]]]) -> None:
    report = verify(entries_of(*said))
    assert [violation[0] for violation in report.violations] == [name]
    assert report.violations[0][1] == f"1-{len(said)}"


def test_a_trimmed_ledger_is_read_from_its_first_snapshot(seed: int = 3) -> None:
    tickets = [{"id": "a", "kind": "handler", "score": 1, "lapsed": False, "holder": None}]
    said = entries_of(
        ("snapshot", {"tickets": tickets, "lease": None, "drain": None, "fence": 4}), present("a"), granted("a", 5, 1)
    )
    half: Callable[[Entries], Entries] = lambda found: [{"id": "0-0", "event": "granted", "ticket": "old"}, *found[1:]]  # noqa: E731
    report = verify(half(said))
    assert (report.handoffs, report.violations) == (1, [])


@pytest.mark.parametrize(("name", "said"), DOCTORED, ids=[name for name, _ in DOCTORED])
def test_read_in_pieces_it_tells_each_fault_once(name: str, said: list[tuple[str, dict[str, Any]]]) -> None:
    reader, found = Reader(), []
    for entry in entries_of(*said):
        reader.read(entry)
        found += [violation[0] for violation in reader.take().violations]
    assert found == [name]
    assert reader.take().violations == []
