"""A holder, turn or process does not affect the next one, except for the time until the process is gone."""

from dataclasses import replace
from typing import Any

import pytest

from sessiond.agent import protocol as wire
from sessiond.agent import state as st
from sessiond.agent.machine import timers
from sessiond.agent.messages import ODD_ALLOWED
from sessiond.agent.state import Agent, AgentTurn, Phase
from sessiond.agent.termination import FAILS_ALLOWED
from sessiond.lock.rules import Kind, Times
from support.agent.machine_runs import agent_request, closes, ended, idle, in_turn, run, written

TIMES = Times()
WHOLE = TIMES.start_deadline
RUNNING = st.Got(wire.StateChanged("running"))
IDLE = st.Got(wire.StateChanged("idle"))


def mine(name: str = "t", kind: Kind = Kind.WORKER, model: str = "m") -> st.Begin:
    return st.Begin(AgentTurn(name, name, "p", kind, model))


NEXT = (st.LeaseEnded("preempted"), st.LeaseBegan(), mine("v", Kind.HANDLER))


def answered(agent: Agent, ok: bool = True) -> st.Got:
    return st.Got(wire.Response(next(iter(agent.requests)), ok, {}, None if ok else "refused"))


def notes(outputs: list[st.Output], event: str) -> list[dict[str, Any]]:
    return [dict(o.data) for o in outputs if isinstance(o, st.Note) and o.event == event]


# ---- start deadlines -----------------------------------------------------------------------------


def test_a_turn_has_one_start_deadline_over_all_processes_that_it_starts() -> None:
    first, _ = run(Agent("c", leased=True), mine())
    second, _ = run(first, st.Exited(1, "crashed"))
    assert (first.phase, second.phase) == (Phase.STARTING, Phase.STARTING)
    assert set(timers(first, TIMES)) & set(timers(second, TIMES)) == {("start", "t")}
    stopping, _ = run(first, st.Spawned(), st.Fault("garbage", "?"))
    assert ("start", "t") in timers(stopping, TIMES)


def test_a_turn_that_inherits_a_hanging_process_gets_the_whole_deadline_with_the_next() -> None:
    starting, _ = run(Agent("c", leased=True), mine(), *NEXT)
    assert starting.phase is Phase.STARTING and timers(starting, TIMES)["inherited", "v"] == WHOLE
    stopping, outputs = run(starting, st.Due("start", "c 0"))
    assert (stopping.phase, ended(outputs)) == (Phase.STOPPING, [])
    assert ("inherited", "v") not in timers(stopping, TIMES), "the inherited deadline has ended"
    assert timers(stopping, TIMES)["gone", "v"] == WHOLE, "the process may never exit"
    assert ended(run(stopping, st.Due("gone", "v"))[1]) == [st.TurnOutcome.FAILED]
    following, _ = run(stopping, st.Exited(143, ""))
    assert following.phase is Phase.STARTING and timers(following, TIMES)["start", "v"] == WHOLE


def test_a_turn_that_inherits_a_crashing_process_gets_the_whole_deadline_with_the_next() -> None:
    starting, _ = run(Agent("c", leased=True), mine(), *NEXT)
    following, _ = run(starting, st.Exited(1, "crashed"))
    assert following.phase is Phase.STARTING
    assert ("start", "v") not in timers(starting, TIMES) and timers(following, TIMES)["start", "v"] == WHOLE


def test_a_turn_that_could_not_start_takes_no_time_from_the_next() -> None:
    starting, _ = run(Agent("c", leased=True), mine(), st.Spawned())
    agent, outputs = run(starting, st.Due("start", "t"))
    assert (agent.phase, ended(outputs)) == (Phase.STOPPING, [st.TurnOutcome.FAILED])
    agent, outputs = run(agent, mine("v"), st.Due("start", "t"), st.Exited(143, ""))
    assert (agent.phase, ended(outputs)) == (Phase.STARTING, []), "the next turn waits for the next process"


def test_the_deadline_of_a_turn_expires_before_that_of_the_process_it_started() -> None:
    starting, _ = run(Agent("c", leased=True), mine(), st.Spawned())
    assert list(timers(starting, TIMES)) == [("start", "t"), ("start", "c 0")]


# ---- requests without a response -----------------------------------------------------------------


@pytest.mark.parametrize(("model", "seconds"), [("m", TIMES.drain_deadline), ("slow", TIMES.start_deadline)])
def test_a_process_that_does_not_answer_is_replaced_for_the_waiting_turn(model: str, seconds: float) -> None:
    asked, outputs = run(idle(rules=None), mine(model=model))
    assert written(outputs) == ["rules:worker"]
    if model == "slow":
        asked, outputs = run(asked, answered(asked))
        assert written(outputs) == ["model:slow"]
    request = agent_request(asked)
    assert timers(asked, TIMES)["answer", request] == seconds
    assert timers(asked, replace(TIMES, drain_deadline=0.001))["answer", request] >= TIMES.not_taken
    given, _ = run(asked, *NEXT)
    assert ("answer", request) in timers(given, TIMES), "the deadline continues under the next holder"
    stopping, outputs = run(given, st.Due("answer", request))
    assert notes(outputs, "recovery") == [{"reason": "no-answer"}] and ended(outputs) == []
    starting, outputs = run(stopping, st.Exited(143, ""))
    assert (starting.phase, starting.turn and starting.turn.id, ended(outputs)) == (Phase.STARTING, "v", [])


def test_refused_rules_fail_only_the_turn_that_asked() -> None:
    asked, _ = run(idle(rules=None), mine())
    assert ended(run(asked, answered(asked, ok=False))[1]) == [st.TurnOutcome.FAILED]
    given, _ = run(asked, *NEXT)
    stopping, outputs = run(given, answered(given, ok=False))
    assert (stopping.phase, ended(outputs)) == (Phase.STOPPING, []), "the process is not used any further"
    assert run(stopping, st.Exited(143, ""))[0].turn is not None


def test_a_refused_model_fails_only_the_turn_that_asked() -> None:
    asked, _ = run(idle(), mine(model="bad"))
    assert ended(run(asked, answered(asked, ok=False))[1]) == [st.TurnOutcome.FAILED]
    given, _ = run(asked, st.LeaseEnded("preempted"), st.LeaseBegan(), mine("v", Kind.HANDLER, "bad"))
    assert ended(run(given, answered(given, ok=False))[1]) == []


def test_an_unknown_state_does_not_count_as_idle() -> None:
    """Otherwise the lock is granted, and the next turn waits for an `idle` that never comes."""
    agent, outputs = run(idle(leased=False), st.Got(wire.StateChanged("requires_action")))
    assert agent.busy and written(outputs) == ["interrupt"]
    assert ("drain", "busy") in timers(agent, TIMES)


# ---- stray processes --------------------------------------------------------------------------------------


def test_an_earlier_examination_does_not_count_at_the_end_of_the_lease() -> None:
    """A fence that closed no turn counts only once as well."""
    foreign = st.Got(wire.Result((), "peer", False, "completed", "x"))
    agent, _ = run(idle(), foreign)
    agent, _ = run(agent, st.TreeExamined(True), answered(agent))
    assert agent.strays and not agent.dirty
    over, outputs = run(agent, st.LeaseEnded("released"))
    assert written(outputs) == ["fence"] and over.busy, "the tree is examined again after a new fence"
    assert st.Busy(False) not in run(over, st.TreeExamined(True), answered(over))[1]


def test_each_ended_task_causes_a_new_fence() -> None:
    agent, _ = run(idle(), st.Got(wire.Tasks(frozenset({"b1", "b2"}))), st.Got(wire.Tasks(frozenset({"b2"}))))
    agent, _ = run(agent, st.TreeExamined(False), answered(agent))
    assert written(run(agent, st.Got(wire.Tasks(frozenset())))[1]) == ["fence"]


# ---- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["garbage", "stdin-full"])
def test_an_agent_that_never_reaches_a_prompt_is_not_restarted_forever(what: str) -> None:
    agent, _ = run(Agent("c", leased=True), mine())
    for number in range(1, FAILS_ALLOWED + 1):
        agent, outputs = run(agent, st.Spawned(), st.Fault(what, "?"), st.Exited(143, ""))
        assert ended(outputs) == ([st.TurnOutcome.FAILED] if number == FAILS_ALLOWED else [])
    assert (agent.phase, agent.why) == (Phase.BROKEN, what)


def test_a_fault_during_a_turn_does_not_count_as_a_failed_start() -> None:
    agent, outputs = run(in_turn(), st.Fault("garbage", "?"), st.Exited(143, ""))
    assert (agent.fails, ended(outputs)) == (0, [st.TurnOutcome.LOST])


@pytest.mark.parametrize("reason", ["completed", "aborted_tools"])
def test_a_result_resets_the_count_of_failures(reason: str) -> None:
    agent, _ = run(idle(fails=FAILS_ALLOWED - 1), mine())
    result = st.Got(wire.Result(("t",), None, False, reason, "x"))
    over = [st.Got(wire.Lifecycle("t", "started")), result, st.Got(wire.Lifecycle("t", "completed")), IDLE]
    agent, _ = run(agent, RUNNING, *over)
    agent, outputs = run(agent, answered(agent))
    assert len(ended(outputs)) == 1 and agent.fails == 0


def test_unexpected_lines_are_limited() -> None:
    """Each line causes a step with a ledger entry. Without a limit they fill the ledger and delay all callers."""
    foreign = st.Got(wire.Result((), "peer", False, "completed", "x"))
    agent, _ = run(idle(), *[foreign] * ODD_ALLOWED)
    assert agent.phase is Phase.IDLE
    agent, outputs = run(agent, foreign, foreign, foreign)
    assert (agent.phase, agent.why, len(notes(outputs, "foreign"))) == (Phase.STOPPING, "garbage", 1)


def test_unexpected_lines_are_counted_between_the_ends_of_turns() -> None:
    agent, _ = run(in_turn(), *[st.Got(wire.Response("never asked", True, {}))] * ODD_ALLOWED)
    agent, _ = closes(agent, "u")
    assert agent.odd == 0


# ---- cost ----------------------------------------------------------------------------------------


def costs(agent: Agent, uuid: str, total: float) -> tuple[Agent, float | None]:
    agent, outputs = closes(agent, uuid, total)
    (over,) = [o for o in outputs if isinstance(o, st.TurnOver)]
    return agent, over.cost_usd


def test_the_cost_of_claudes_own_turn_is_charged_to_no_holder() -> None:
    foreign = wire.Result((), "peer", False, "completed", "x", cost_usd=6.0)
    agent, _ = run(idle(cost=1.0), RUNNING, st.Got(foreign), IDLE)
    for _ in range(2):  # the interrupt, the fence
        agent, _ = run(agent, st.Got(wire.Response(agent_request(agent), True, {})))
    agent, _ = run(agent, mine("v"))
    assert costs(agent, "v", 6.5)[1] == 0.5


@pytest.mark.parametrize("uuids", [(), ("u",)])
def test_the_cost_of_a_later_result_is_charged_to_no_turn(uuids: tuple[str, ...]) -> None:
    """The later result belongs to another turn, or is a second one of the same turn."""
    results = ((("u",), 1.0), (uuids, 1.5))
    ours, more = (wire.Result(of, None, False, "completed", "x", cost_usd=usd) for of, usd in results)
    agent, _ = run(in_turn(), st.Got(ours), st.Got(more), st.Got(wire.Lifecycle("u", "completed")), IDLE)
    agent, outputs = run(agent, answered(agent))
    assert [o.cost_usd for o in outputs if isinstance(o, st.TurnOver)] == [1.0]
    agent, _ = run(agent, mine("v"))
    assert costs(agent, "v", 2.0)[1] == 0.5


def test_a_falling_total_counts_as_no_cost() -> None:
    agent, _ = run(idle(cost=2.0), mine("v"))
    agent, usd = costs(agent, "v", 1.0)
    assert (usd, agent.cost) == (0.0, 2.0)
