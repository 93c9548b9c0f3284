"""What one holder, turn or process may cost the next: nothing but the time until the process is gone."""

from dataclasses import replace
from typing import Any

import pytest

from sessiond.agent import protocol as wire
from sessiond.agent import state as st
from sessiond.agent.machine import timers
from sessiond.agent.messages import ODD_ALLOWED
from sessiond.agent.state import Agent, Phase, Turn
from sessiond.agent.termination import FAILS_ALLOWED
from sessiond.lock.rules import Kind, Times
from support.agent.pure import agent_request, closes, ended, idle, in_turn, run, written

TIMES = Times()
WHOLE = TIMES.start_deadline
RUNNING = st.Got(wire.StateChanged("running"))
IDLE = st.Got(wire.StateChanged("idle"))


def mine(name: str = "t", kind: Kind = Kind.WORKER, model: str = "m") -> st.Begin:
    return st.Begin(Turn(name, name, "p", kind, model))


NEXT = (st.LeaseEnded("preempted"), st.LeaseBegan(), mine("v", Kind.HANDLER))


def answered(agent: Agent, ok: bool = True) -> st.Got:
    return st.Got(wire.Response(next(iter(agent.requests)), ok, {}, None if ok else "refused"))


def notes(outputs: list[st.Output], event: str) -> list[dict[str, Any]]:
    return [dict(o.data) for o in outputs if isinstance(o, st.Note) and o.event == event]


# ---- time to start -------------------------------------------------------------------------------


def test_a_turn_has_one_start_deadline_whatever_becomes_of_the_processes_that_it_starts() -> None:
    first, _ = run(Agent("c", leased=True), mine())
    second, _ = run(first, st.Exited(1, "crashed"))
    assert (first.phase, second.phase) == (Phase.STARTING, Phase.STARTING)
    assert set(timers(first, TIMES)) & set(timers(second, TIMES)) == {("start", "t")}
    stopping, _ = run(first, st.Spawned(), st.Fault("garbage", "?"))
    assert ("start", "t") in timers(stopping, TIMES)


def test_who_is_given_a_process_that_hangs_in_its_start_has_his_whole_time_with_the_next() -> None:
    starting, _ = run(Agent("c", leased=True), mine(), *NEXT)
    assert starting.phase is Phase.STARTING and timers(starting, TIMES)["inherited", "v"] == WHOLE
    stopping, outputs = run(starting, st.Due("start", "c 0"))
    assert (stopping.phase, ended(outputs)) == (Phase.STOPPING, [])
    assert ("inherited", "v") not in timers(stopping, TIMES), "it does not run on"
    assert timers(stopping, TIMES)["gone", "v"] == WHOLE, "and if the process never goes?"
    assert ended(run(stopping, st.Due("gone", "v"))[1]) == [st.Outcome.FAILED]
    following, _ = run(stopping, st.Exited(143, ""))
    assert following.phase is Phase.STARTING and timers(following, TIMES)["start", "v"] == WHOLE


def test_and_so_has_who_is_given_one_that_crashes_late_in_its_start() -> None:
    starting, _ = run(Agent("c", leased=True), mine(), *NEXT)
    following, _ = run(starting, st.Exited(1, "crashed"))
    assert following.phase is Phase.STARTING
    assert ("start", "v") not in timers(starting, TIMES) and timers(following, TIMES)["start", "v"] == WHOLE


def test_a_turn_that_could_not_start_takes_no_time_from_the_next() -> None:
    starting, _ = run(Agent("c", leased=True), mine(), st.Spawned())
    agent, outputs = run(starting, st.Due("start", "t"))
    assert (agent.phase, ended(outputs)) == (Phase.STOPPING, [st.Outcome.FAILED])
    agent, outputs = run(agent, mine("v"), st.Due("start", "t"), st.Exited(143, ""))
    assert (agent.phase, ended(outputs)) == (Phase.STARTING, []), "the next turn waits for the next process"


def test_of_a_turn_and_the_process_that_it_started_the_turn_runs_out_first() -> None:
    starting, _ = run(Agent("c", leased=True), mine(), st.Spawned())
    assert list(timers(starting, TIMES)) == [("start", "t"), ("start", "c 0")]


# ---- what was asked, and is not answered ---------------------------------------------------------


@pytest.mark.parametrize(("model", "seconds"), [("m", TIMES.drain_deadline), ("slow", TIMES.start_deadline)])
def test_a_process_that_no_longer_answers_is_not_used_and_who_waits_gets_another(model: str, seconds: float) -> None:
    asked, outputs = run(idle(rules=None), mine(model=model))
    assert written(outputs) == ["rules:worker"]
    if model == "slow":
        asked, outputs = run(asked, answered(asked))
        assert written(outputs) == ["model:slow"]
    request = agent_request(asked)
    assert timers(asked, TIMES)["answer", request] == seconds
    assert timers(asked, replace(TIMES, drain_deadline=0.001))["answer", request] >= TIMES.not_taken
    given, _ = run(asked, *NEXT)
    assert ("answer", request) in timers(given, TIMES), "it runs on, whoever holds now"
    stopping, outputs = run(given, st.Due("answer", request))
    assert notes(outputs, "recovery") == [{"reason": "no-answer"}] and ended(outputs) == []
    starting, outputs = run(stopping, st.Exited(143, ""))
    assert (starting.phase, starting.turn and starting.turn.id, ended(outputs)) == (Phase.STARTING, "v", [])


def test_rules_that_were_refused_to_one_turn_fail_no_other() -> None:
    asked, _ = run(idle(rules=None), mine())
    assert ended(run(asked, answered(asked, ok=False))[1]) == [st.Outcome.FAILED]
    given, _ = run(asked, *NEXT)
    stopping, outputs = run(given, answered(given, ok=False))
    assert (stopping.phase, ended(outputs)) == (Phase.STOPPING, []), "the process is not used any further"
    assert run(stopping, st.Exited(143, ""))[0].turn is not None


def test_a_model_that_was_refused_to_one_turn_fails_no_other() -> None:
    asked, _ = run(idle(), mine(model="bad"))
    assert ended(run(asked, answered(asked, ok=False))[1]) == [st.Outcome.FAILED]
    given, _ = run(asked, st.LeaseEnded("preempted"), st.LeaseBegan(), mine("v", Kind.HANDLER, "bad"))
    assert ended(run(given, answered(given, ok=False))[1]) == []


def test_a_state_that_nobody_knows_is_no_idle() -> None:
    """Else the lock is granted, and the next turn waits for an idle that nobody owes."""
    agent, outputs = run(idle(leased=False), st.Got(wire.StateChanged("requires_action")))
    assert agent.busy and written(outputs) == ["interrupt"]
    assert ("drain", "busy") in timers(agent, TIMES)


# ---- what still runs -----------------------------------------------------------------------------


def test_a_look_of_before_is_none_at_the_leases_end() -> None:
    """A fence that closed no turn is used up all the same."""
    foreign = st.Got(wire.Result((), "peer", False, "completed", "x"))
    agent, _ = run(idle(), foreign)
    agent, _ = run(agent, st.Looked(True), answered(agent))
    assert agent.strays and not agent.dirty
    over, outputs = run(agent, st.LeaseEnded("released"))
    assert written(outputs) == ["fence"] and over.busy, "they are looked for again, behind a fence of its own"
    assert st.Busy(False) not in run(over, st.Looked(True), answered(over))[1]


def test_a_task_that_ends_is_looked_for_whatever_was_fenced_before() -> None:
    agent, _ = run(idle(), st.Got(wire.Tasks(frozenset({"b1", "b2"}))), st.Got(wire.Tasks(frozenset({"b2"}))))
    agent, _ = run(agent, st.Looked(False), answered(agent))
    assert written(run(agent, st.Got(wire.Tasks(frozenset())))[1]) == ["fence"]


# ---- what counts against the agent ---------------------------------------------------------------


@pytest.mark.parametrize("what", ["garbage", "stdin-full"])
def test_an_agent_that_never_gets_to_a_prompt_is_not_started_for_ever(what: str) -> None:
    agent, _ = run(Agent("c", leased=True), mine())
    for number in range(1, FAILS_ALLOWED + 1):
        agent, outputs = run(agent, st.Spawned(), st.Fault(what, "?"), st.Exited(143, ""))
        assert ended(outputs) == ([st.Outcome.FAILED] if number == FAILS_ALLOWED else [])
    assert (agent.phase, agent.why) == (Phase.BROKEN, what)


def test_what_ends_a_turn_at_work_counts_for_no_crash_loop() -> None:
    agent, outputs = run(in_turn(), st.Fault("garbage", "?"), st.Exited(143, ""))
    assert (agent.fails, ended(outputs)) == (0, [st.Outcome.LOST])


@pytest.mark.parametrize("reason", ["completed", "aborted_tools"])
def test_an_agent_that_gave_a_result_is_no_crash_loops(reason: str) -> None:
    agent, _ = run(idle(fails=FAILS_ALLOWED - 1), mine())
    result = st.Got(wire.Result(("t",), None, False, reason, "x"))
    over = [st.Got(wire.Lifecycle("t", "started")), result, st.Got(wire.Lifecycle("t", "completed")), IDLE]
    agent, _ = run(agent, RUNNING, *over)
    agent, outputs = run(agent, answered(agent))
    assert len(ended(outputs)) == 1 and agent.fails == 0


def test_lines_that_nobody_asked_for_have_an_end() -> None:
    """Each is a step with an entry: without one they would fill the ledger, and everybody waits behind them."""
    foreign = st.Got(wire.Result((), "peer", False, "completed", "x"))
    agent, _ = run(idle(), *[foreign] * ODD_ALLOWED)
    assert agent.phase is Phase.IDLE
    agent, outputs = run(agent, foreign, foreign, foreign)
    assert (agent.phase, agent.why, len(notes(outputs, "foreign"))) == (Phase.STOPPING, "garbage", 1)


def test_they_are_counted_from_one_turns_end_to_the_next() -> None:
    agent, _ = run(in_turn(), *[st.Got(wire.Response("never asked", True, {}))] * ODD_ALLOWED)
    agent, _ = closes(agent, "u")
    assert agent.odd == 0


# ---- cost ----------------------------------------------------------------------------------------


def costs(agent: Agent, uuid: str, total: float) -> tuple[Agent, float | None]:
    agent, outputs = closes(agent, uuid, total)
    (over,) = [o for o in outputs if isinstance(o, st.TurnOver)]
    return agent, over.cost_usd


def test_what_a_turn_of_claudes_own_cost_is_no_holders() -> None:
    foreign = wire.Result((), "peer", False, "completed", "x", cost_usd=6.0)
    agent, _ = run(idle(cost=1.0), RUNNING, st.Got(foreign), IDLE)
    for _ in range(2):  # the interrupt, the fence
        agent, _ = run(agent, st.Got(wire.Response(agent_request(agent), True, {})))
    agent, _ = run(agent, mine("v"))
    assert costs(agent, "v", 6.5)[1] == 0.5


@pytest.mark.parametrize("uuids", [(), ("u",)])
def test_nor_is_what_comes_behind_a_turns_own_result(uuids: tuple[str, ...]) -> None:
    """Another's result, or a second one of its own."""
    told = ((("u",), 1.0), (uuids, 1.5))
    ours, more = (wire.Result(of, None, False, "completed", "x", cost_usd=usd) for of, usd in told)
    agent, _ = run(in_turn(), st.Got(ours), st.Got(more), st.Got(wire.Lifecycle("u", "completed")), IDLE)
    agent, outputs = run(agent, answered(agent))
    assert [o.cost_usd for o in outputs if isinstance(o, st.TurnOver)] == [1.0]
    agent, _ = run(agent, mine("v"))
    assert costs(agent, "v", 2.0)[1] == 0.5


def test_a_total_that_falls_is_nobodys_gain() -> None:
    agent, _ = run(idle(cost=2.0), mine("v"))
    agent, usd = costs(agent, "v", 1.0)
    assert (usd, agent.cost) == (0.0, 2.0)
