"""The lock, explored; and each rule broken once, to which the explorer must object by the right name."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lock.explorer import Cast, Decide, Explorer, Violation
from sessiond.lock import events as ev
from sessiond.lock import machine
from sessiond.lock.rules import Kind, LeaseEnd
from sessiond.lock.state import Lock

H, W = Kind.HANDLER, Kind.WORKER
ONCE = dict.fromkeys(
    ("supersede", "pause", "hang-up", "withdraw", "force", "reaped", "restart", "loss", "lapse", "old", "hold"), 1
)
CASTS = {
    "3 handlers of 2 priorities, 1 worker": Cast({"a": (H, 5), "b": (H, 5), "c": (H, 3), "w": (W, 5)}, ONCE, 1),
    "2 handlers, 2 workers": Cast({"a": (H, 5), "b": (H, 3), "w": (W, 5), "v": (W, 5)}, ONCE, 1),
    "2 handlers, 1 worker, 2 faults": Cast({"a": (H, 5), "b": (H, 3), "w": (W, 5)}, ONCE, 2),
    "1 handler, 1 worker, 4 faults": Cast({"a": (H, 5), "w": (W, 5)}, {**ONCE, "loss": 3, "lapse": 2}, 4),
}


@pytest.mark.parametrize("name", CASTS)
def test_every_reachable_state_keeps_every_invariant(name: str) -> None:
    explorer, begun = Explorer(CASTS[name]), time.monotonic()
    explorer.run()
    print(f"{name}: {explorer.states} states, {explorer.transitions} transitions, {time.monotonic() - begun:.1f} s")
    assert explorer.states > 5_000


def afterwards(change: Callable[[Lock, ev.Event, ev.Step], ev.Step]) -> Decide:
    """A machine whose steps are spoilt."""
    return lambda lock, event: change(lock, event, machine.decide(lock, event))


def another_score(old: Lock, event: ev.Event, step: ev.Step) -> ev.Step:
    for name, data in step.ledger:
        if name == "back" and data["ticket"] in step.lock.tickets:
            ticket = step.lock.tickets[data["ticket"]]
            spoilt = {**step.lock.tickets, ticket.id: replace(ticket, score=ticket.score + 50)}
            return replace(step, lock=replace(step.lock, tickets=spoilt))
    return step


def same_fence(old: Lock, event: ev.Event, step: ev.Step) -> ev.Step:
    if step.lock.lease is None or (old.lease and old.lease.fence == step.lock.lease.fence):
        return step
    ledger = tuple((n, {**d, "fence": old.fence} if n == "granted" else d) for n, d in step.ledger)
    lease = replace(step.lock.lease, fence=old.fence)
    return replace(step, lock=replace(step.lock, lease=lease, fence=old.fence), ledger=ledger)


def anothers_lease(old: Lock, event: ev.Event, step: ev.Step) -> ev.Step:
    if step.lock.lease is None:
        return step
    return replace(step, lock=replace(step.lock, lease=replace(step.lock.lease, holder="nobody")))


def silent_end(old: Lock, event: ev.Event, step: ev.Step) -> ev.Step:
    return replace(step, ledger=tuple(e for e in step.ledger if e[0] != "ended"))


def no_drain(lock: Lock, event: ev.Event) -> ev.Step:
    if isinstance(event, (ev.TurnClosed, ev.Reaped)):
        return machine.decide(lock, event)
    return machine.decide(replace(lock, turn=None), event)


def deaf_to_force(lock: Lock, event: ev.Event) -> ev.Step:
    step = machine.decide(lock, event)
    return ev.Step(lock) if isinstance(event, ev.ForceRelease) else step


def forgetful(lock: Lock, event: ev.Event) -> ev.Step:
    tickets = {k: replace(t, superseded=frozenset()) for k, t in lock.tickets.items()}
    return machine.decide(replace(lock, tickets=tickets), event)


def anyone_releases(lock: Lock, event: ev.Event) -> ev.Step:
    if isinstance(event, ev.Release) and lock.lease is not None:
        event = ev.Release(lock.lease.fence)
    return machine.decide(lock, event)


SPOILT: list[tuple[str, Decide]] = [
    ("no_place_lost", afterwards(another_score)),
    ("fence_grows", afterwards(same_fence)),
    ("one_holder_per_lease", afterwards(anothers_lease)),
    ("no_dual_ownership", afterwards(silent_end)),
    ("no_grant_while_draining", no_drain),
    ("force_release_frees", deaf_to_force),
    ("supersede_is_one_way", forgetful),
    ("release_only_by_owner", anyone_releases),
]
SMALL = Cast({"a": (H, 5), "b": (H, 3), "w": (W, 5), "v": (W, 5)}, ONCE, 1)


@pytest.mark.parametrize(("name", "decide"), SPOILT, ids=[name for name, _ in SPOILT])
def test_a_spoilt_step_is_objected_to(name: str, decide: Decide) -> None:
    with pytest.raises(Violation) as caught:
        Explorer(SMALL, decide).run()
    assert caught.value.name == name


def present_last(lock: Lock) -> Any:
    """Grants the last of the present instead of the head."""
    found = [t for t in lock.queue if machine.could_have(lock, t)]
    return (found[-1], frozenset()) if found else None


def no_worker_order(lock: Lock) -> Any:
    found = GRANTABLE(lock)
    if found is not None and found[0].kind is Kind.WORKER:
        return present_last(lock)
    return found


GRANTABLE = machine.grantable
RULES: list[tuple[str, str, Any]] = [
    ("no_worker_while_handler_in_queue", "handler_waits", lambda lock: False),
    ("handler_fifo", "grantable", present_last),
    ("worker_fifo", "grantable", no_worker_order),
    ("lapsed_bars_nobody", "handler_waits", lambda lock: any(t.kind is Kind.HANDLER for t in lock.queue)),
    ("every_present_ticket_is_served", "waited_for", lambda lock: []),
    ("no_place_lost", "TICKET_END", {**machine.TICKET_END, LeaseEnd.PREEMPTED: machine.TicketEnd.RELEASED}),
]


@pytest.mark.parametrize(("name", "rule", "broken"), RULES, ids=[name for name, _, _ in RULES])
def test_a_broken_rule_is_objected_to(monkeypatch: pytest.MonkeyPatch, name: str, rule: str, broken: Any) -> None:
    monkeypatch.setattr(machine, rule, broken)
    with pytest.raises(Violation) as caught:
        Explorer(SMALL).run()
    assert caught.value.name == name
