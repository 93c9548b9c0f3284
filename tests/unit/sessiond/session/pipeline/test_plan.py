"""The decision of a step by both machines."""

import typing
from dataclasses import replace

from sessiond.agent import state as st
from sessiond.lock import events as ev
from sessiond.lock.machine import decide
from sessiond.lock.rules import Kind, Presence
from sessiond.lock.state import Lock
from sessiond.session.pipeline.plan import compose, forget_presence

H = Kind.HANDLER


def test_no_event_belongs_to_both_machines() -> None:
    lock, agent = typing.get_args(ev.Event), typing.get_args(st.Event)
    assert lock and agent and not set(lock) & set(agent)


def test_the_end_of_a_workers_lease_cancels_its_turn_in_the_same_step() -> None:
    agent = st.Agent("c", phase=st.Phase.ASLEEP)
    taken = compose(Lock(), agent, [ev.Take("w", Kind.WORKER, 30), ev.Wait("w", "worker")])
    assert taken.grant is not None and taken.agent.leased
    turn = st.AgentTurn("tu-1", "u", "do it", Kind.WORKER, "m")
    begun = compose(taken.lock, taken.agent, [ev.AcceptTurn(taken.grant.fence, "tu-1"), st.Begin(turn)])
    assert begun.agent.turn is not None and begun.lock.turn == "tu-1"
    preempted = compose(begun.lock, begun.agent, [ev.Take("a", H, 5)])
    assert preempted.lock.lease is None
    # The turn was never written, so it closes at once, and nothing is left to drain.
    assert [type(o) for o in preempted.outputs if isinstance(o, st.TurnOver)] == [st.TurnOver]
    assert (preempted.lock.turn, preempted.lock.drain) == (None, None)


def test_after_an_outage_only_tickets_with_a_waiter_are_present() -> None:
    lock = Lock()
    for ticket in ("tk-1", "tk-2", "tk-3"):
        lock = decide(lock, ev.Take(ticket, H, 5)).lock
    tickets = {
        **lock.tickets,
        "tk-1": replace(lock.tickets["tk-1"], passed=True),
        "tk-2": replace(lock.tickets["tk-2"], presence=Presence.WAITING),
        "tk-3": replace(lock.tickets["tk-3"], presence=Presence.GRACE),
    }
    plan = forget_presence(replace(lock, tickets=tickets), st.Agent("c"), lambda ticket: ticket == "tk-2")
    assert plan.ledger == [("absent", {"ticket": "tk-1"}), ("absent", {"ticket": "tk-3"})]
    assert {t.id: (t.present, t.passed) for t in plan.lock.tickets.values()} == {
        "tk-1": (False, False), "tk-2": (True, False), "tk-3": (False, False),
    }  # fmt: skip


def test_an_outage_without_waiters_changes_nothing() -> None:
    lock = decide(Lock(), ev.Take("tk-1", H, 5)).lock
    assert forget_presence(lock, st.Agent("c"), lambda _: False).lock is lock
