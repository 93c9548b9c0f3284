"""Explorations of the lock with small scenarios. For each broken rule, the explorer must report its invariant."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sessiond.lock import events as ev
from sessiond.lock import machine, queries
from sessiond.lock.rules import Kind, LeaseEnd
from sessiond.lock.state import Lock
from support.lock.explorer import Decide, Explorer, Scenario, Scene, Violation, canonical

H, W = Kind.HANDLER, Kind.WORKER
TWO_AND_TWO = ((H, 3), (H, 5), (W, 5), (W, 5))
PLACES = {"supersede": 1, "lapse": 1, "loss": 1}
SMALL = Scenario(TWO_AND_TWO, PLACES)
QUICK = {
    "1 handler, 1 worker, any two faults": Scenario(
        ((H, 5), (W, 5)), {"supersede": 1, "pause": 1, "lapse": 1, "loss": 1, "tasks": 1}, together=2
    ),
    "2 handlers of 2 priorities, 1 worker, one lapse": Scenario(((H, 3), (H, 5), (W, 5)), {"lapse": 1}, turns=False),
}


@pytest.mark.parametrize("name", QUICK)
def test_every_reachable_state_of_a_small_cast_keeps_every_invariant(name: str) -> None:
    """Explore small scenarios in a few seconds. tests/integration/sessiond/lock explores the large ones."""
    explorer = Explorer(QUICK[name])
    explorer.run()
    assert explorer.states > 200


def test_states_that_differ_only_in_names_are_the_same() -> None:
    """A ticket's place and rank count, but not its id. Of fences and scores, only the order counts."""

    def lock_after_takes(names: str, before: int) -> Lock:
        lock = Lock(fence=before, arrivals=before)
        for name in names:
            lock = machine.decide(lock, ev.Take(name, H, 5)).lock
        return machine.decide(lock, ev.Wait(names[1], f"{names[1]}-1")).lock

    first, second = Scene(lock_after_takes("ab", 1), ()), Scene(lock_after_takes("yx", 700), ())
    assert canonical(first) == canonical(second) and first.lock != second.lock
    assert canonical(Scene(machine.decide(first.lock, ev.HangUp("b", "b-1")).lock, ())) != canonical(first)


def altered(change: Callable[[Lock, ev.Event, ev.Decision], ev.Decision]) -> Decide:
    """Return a machine whose steps `change` alters."""
    return lambda lock, event: change(lock, event, machine.decide(lock, event))


def another_score(old: Lock, event: ev.Event, step: ev.Decision) -> ev.Decision:
    for name, data in step.ledger:
        if name == "back" and data["ticket"] in step.lock.tickets:
            ticket = step.lock.tickets[data["ticket"]]
            changed = {**step.lock.tickets, ticket.id: replace(ticket, score=ticket.score + 50)}
            return replace(step, lock=replace(step.lock, tickets=changed))
    return step


def same_fence(old: Lock, event: ev.Event, step: ev.Decision) -> ev.Decision:
    if step.lock.lease is None or (old.lease and old.lease.fence == step.lock.lease.fence):
        return step
    ledger = tuple((n, {**d, "fence": old.fence} if n == "granted" else d) for n, d in step.ledger)
    lease = replace(step.lock.lease, fence=old.fence)
    return replace(step, lock=replace(step.lock, lease=lease, fence=old.fence), ledger=ledger)


def wrong_holder(old: Lock, event: ev.Event, step: ev.Decision) -> ev.Decision:
    if step.lock.lease is None:
        return step
    return replace(step, lock=replace(step.lock, lease=replace(step.lock.lease, holder="nobody")))


def unrecorded_end(old: Lock, event: ev.Event, step: ev.Decision) -> ev.Decision:
    return replace(step, ledger=tuple(e for e in step.ledger if e[0] != "ended"))


def no_drain(lock: Lock, event: ev.Event) -> ev.Decision:
    if isinstance(event, (ev.TurnClosed, ev.Reaped)):
        return machine.decide(lock, event)
    return machine.decide(replace(lock, turn=None), event)


def ignored_force_release(lock: Lock, event: ev.Event) -> ev.Decision:
    step = machine.decide(lock, event)
    return ev.Decision(lock) if isinstance(event, ev.ForceRelease) else step


def forgotten_superseded(lock: Lock, event: ev.Event) -> ev.Decision:
    tickets = {k: replace(t, superseded=frozenset()) for k, t in lock.tickets.items()}
    return machine.decide(replace(lock, tickets=tickets), event)


def release_by_anyone(lock: Lock, event: ev.Event) -> ev.Decision:
    if isinstance(event, ev.Release) and lock.lease is not None:
        event = ev.Release(lock.lease.fence)
    return machine.decide(lock, event)


ALTERED_STEPS: list[tuple[str, Decide]] = [
    ("no_place_lost", altered(another_score)),
    ("fence_grows", altered(same_fence)),
    ("one_holder_per_lease", altered(wrong_holder)),
    ("no_dual_ownership", altered(unrecorded_end)),
    ("no_grant_while_draining", no_drain),
    ("force_release_frees", ignored_force_release),
    ("supersede_is_one_way", forgotten_superseded),
    ("release_only_by_owner", release_by_anyone),
]


@pytest.mark.parametrize(("name", "decide"), ALTERED_STEPS, ids=[name for name, _ in ALTERED_STEPS])
def test_an_altered_step_is_detected(name: str, decide: Decide) -> None:
    with pytest.raises(Violation) as caught:
        Explorer(SMALL, decide).run()
    assert caught.value.name == name


def present_last(lock: Lock) -> Any:
    """Grant the last present ticket instead of the head."""
    found = [t for t in lock.queue if queries.could_have(lock, t)]
    return (found[-1], frozenset()) if found else None


def no_worker_order(lock: Lock) -> Any:
    found = GRANTABLE(lock)
    if found is not None and found[0].kind is Kind.WORKER:
        return present_last(lock)
    return found


GRANTABLE = queries.grantable
RULES: list[tuple[str, Any, str, Any]] = [
    ("no_worker_while_handler_in_queue", queries, "handler_waits", lambda lock: False),
    ("handler_fifo", queries, "grantable", present_last),
    ("worker_fifo", queries, "grantable", no_worker_order),
    ("lapsed_bars_nobody", queries, "handler_waits", lambda lock: any(t.kind is Kind.HANDLER for t in lock.queue)),
    ("every_present_ticket_is_served", queries, "waited_for", lambda lock: []),
    ("no_place_lost", machine, "TICKET_END", {**machine.TICKET_END, LeaseEnd.PREEMPTED: machine.TicketEnd.RELEASED}),
]


@pytest.mark.parametrize(("name", "module", "rule", "broken"), RULES, ids=[one[0] for one in RULES])
def test_a_broken_rule_is_detected(
    monkeypatch: pytest.MonkeyPatch, name: str, module: Any, rule: str, broken: Any
) -> None:
    monkeypatch.setattr(module, rule, broken)
    with pytest.raises(Violation) as caught:
        Explorer(SMALL).run()
    assert caught.value.name == name
