"""The agent's machine: its table, and the conditions that keep a turn open."""

from dataclasses import replace
from itertools import product
from typing import Any

import orjson
import pytest

from sessiond.agent import protocol as wire
from sessiond.agent import state as st
from sessiond.agent.machine import decide, timers
from sessiond.agent.messages import NEEDED
from sessiond.agent.state import Agent, AgentTurn, Phase
from sessiond.agent.transitions import MOVES, BadMove, Draft, Move
from sessiond.lock.rules import Kind, Times
from support.agent.machine_runs import agent_request, closes, ended, idle, in_turn, run, written

QUESTION = wire.Question("q1", "Write", {"file_path": "/work/.mcp.json"})


ENDING = (
    st.Got(wire.Lifecycle("u", "cancelled")),
    st.Got(wire.Result(("u",), None, True, "aborted_tools", "")),
    st.Got(wire.StateChanged("idle")),
)


@pytest.mark.parametrize(("phase", "move"), [p for p in product(Phase, Move) if p[1] not in MOVES[p[0]]])
def test_a_transition_outside_the_table_is_refused_with_its_name(phase: Phase, move: Move) -> None:
    draft = Draft(Agent("c", phase=phase), st.Spawned())
    with pytest.raises(BadMove, match=f"Spawned: {move.value}, in {phase.value}"):
        draft.go(move)


def test_the_refusal_of_a_second_turn_names_the_event_and_the_state() -> None:
    with pytest.raises(ValueError, match="one_turn_open: Begin v in in_turn, t is open"):
        decide(in_turn(), st.Begin(AgentTurn("v", "v", "p", Kind.WORKER, "m")))


def test_the_answer_to_a_question_depends_on_the_kind_of_the_lease() -> None:
    agent, asked = run(in_turn(), st.Got(QUESTION))
    assert (asked, list(agent.questions)) == ([st.Asked("q1")], ["q1"])
    agent, outputs = run(agent, st.AnswerQuestion("q1"))
    assert (written(outputs), agent.questions) == (["allow"], {})
    agent, outputs = run(in_turn(kind=Kind.HANDLER), st.Got(replace(QUESTION, tool="Bash")), st.AnswerQuestion("q1"))
    assert written(outputs) == ["deny"]


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize(
    ("tool", "given", "leads_to", "worker_may"),
    [
        ("Write", {"file_path": "/work/.git/config"}, None, True),
        ("Write", {"file_path": "/work/link/x"}, "/elsewhere/x", False),
        ("Write", {"file_path": "/work/../x"}, None, False),
        ("NotebookEdit", {"notebook_path": "/workshop/x.ipynb"}, None, False),
        ("Agent", {"prompt": "look"}, None, True),
        ("Read", {"file_path": "/work/link.txt"}, "/elsewhere/x", False),
        ("Glob", {"pattern": "/elsewhere/*"}, None, False),
        ("Grep", {"pattern": "x", "path": "~"}, None, False),
        ("EnterPlanMode", {}, None, False),
    ],
)
def test_a_question_is_allowed_only_for_the_worker_and_inside_the_directory(
    kind: Kind, tool: str, given: dict[str, Any], leads_to: str | None, worker_may: bool
) -> None:
    question = wire.Question("q1", tool, given, leads_to)
    _, outputs = run(in_turn(kind=kind), st.Got(question), st.AnswerQuestion("q1"))
    assert written(outputs) == ["allow" if worker_may and kind is Kind.WORKER else "deny"]


def test_a_cancelled_turn_closes_once_its_open_question_is_withdrawn() -> None:
    agent, outputs = run(in_turn(), st.Got(QUESTION), st.LeaseEnded("preempted"))
    assert written(outputs) == ["interrupt"]
    (interrupt,) = agent.requests
    agent, outputs = run(agent, *ENDING, st.Got(wire.Response(interrupt, True, {})))
    assert (written(outputs), ended(outputs)) == ([], []), "the turn is not over while a question is open"
    agent, outputs = run(agent, st.Got(wire.QuestionCancelled("q1")))
    assert written(outputs) == ["fence"]
    (fence,) = agent.requests
    agent, outputs = run(agent, st.Got(wire.Response(fence, True, {})))
    assert (ended(outputs), agent.phase) == ([st.TurnOutcome.CANCELLED], Phase.IDLE)
    assert run(agent, st.AnswerQuestion("q1"))[1] == [], "a late answer is not written"


def test_a_fence_followed_by_an_interrupt_does_not_count() -> None:
    over = (st.Got(wire.Result(("u",), None, False, "completed", "done")), st.Got(wire.Lifecycle("u", "completed")))
    agent, outputs = run(in_turn(), *over, st.Got(wire.StateChanged("idle")), st.LeaseEnded("preempted"))
    assert written(outputs) == ["fence", "interrupt"]
    fence, interrupt = agent.requests
    agent, outputs = run(agent, st.Got(wire.Response(fence, True, {})), st.Got(wire.Response(interrupt, True, {})))
    assert (written(outputs), ended(outputs)) == (["fence"], [])
    (fence,) = agent.requests
    assert ended(run(agent, st.Got(wire.Response(fence, True, {})))[1]) == [st.TurnOutcome.COMPLETED]


def test_a_question_whose_turn_is_being_cancelled_is_denied() -> None:
    _, outputs = run(in_turn(), st.Got(QUESTION), st.LeaseEnded("preempted"), st.AnswerQuestion("q1"))
    assert written(outputs) == ["interrupt", "deny"]


def test_a_question_after_the_turns_result_is_denied() -> None:
    over = st.Got(wire.Result(("u",), None, False, "completed", "done"))
    assert written(run(in_turn(), over, st.Got(QUESTION), st.AnswerQuestion("q1"))[1]) == ["deny"]


@pytest.mark.parametrize(
    ("result", "ours"),
    [
        (wire.Result(("u",), None, False, "completed", "done"), True),
        (wire.Result(("u", "v"), None, False, "completed", "done"), True),
        (wire.Result((), None, True, None, "early error"), True),
        (wire.Result((), None, False, "completed", "nobody's"), False),
        (wire.Result((), "task-notification", True, None, "nobody's"), False),
        (wire.Result(("v",), None, False, "completed", "another's"), False),
    ],
)
def test_a_result_belongs_to_the_turn_whose_uuid_it_has(result: wire.Result, ours: bool) -> None:
    agent, outputs = run(in_turn(), st.Got(result))
    assert agent.turn is not None and (agent.turn.result is not None) is ours
    assert [o.event for o in outputs if isinstance(o, st.Note)] == ([] if ours else ["foreign"])


def test_a_turn_with_a_result_keeps_its_cost_when_the_agent_dies() -> None:
    result = wire.Result(("u",), None, False, "completed", "done", cost_usd=0.75)
    agent, outputs = run(replace(in_turn(), cost=0.5, fails=2), st.Got(result), st.Exited(1, "gone"))
    (over,) = [o for o in outputs if isinstance(o, st.TurnOver)]
    assert (over.outcome, over.cost_usd) == (st.TurnOutcome.COMPLETED, 0.25)
    assert (agent.cost, agent.fails, agent.phase) == (0.0, 1, Phase.ASLEEP), "the next process counts from zero"


def test_sleep_does_not_break_an_agent_that_has_recovered() -> None:
    rested = replace(in_turn(), phase=Phase.IDLE, said="idle", turn=None, fails=3)
    agent, _ = run(rested, st.Due("sleep", "c"), st.Exited(143, ""))
    assert (agent.phase, agent.fails) == (Phase.ASLEEP, 3)
    agent, _ = run(rested, st.Exited(1, ""))
    assert (agent.phase, agent.why) == (Phase.BROKEN, "agent exited with 1")


def test_a_refusal_for_an_earlier_turn_does_not_fail_the_next() -> None:
    idle = replace(in_turn(), phase=Phase.IDLE, said="idle", turn=None)
    first, second = (AgentTurn(name, name, "prompt", Kind.WORKER, f"model {name}") for name in ("t", "v"))
    agent, outputs = run(idle, st.Begin(first), st.Cancel("t", "cancelled"), st.Begin(second))
    assert written(outputs) == ["model:model t"]
    agent, outputs = run(agent, st.Got(wire.Response(agent_request(agent), False, {}, "no such model")))
    assert (written(outputs), ended(outputs)) == (["model:model v"], [])
    _, outputs = run(agent, st.Got(wire.Response(agent_request(agent), False, {}, "no such model")))
    assert ended(outputs) == [st.TurnOutcome.FAILED]


@pytest.mark.parametrize("event", [st.Fault("garbage", "not JSON"), st.Fault("stdin-full", "16 MB wait")])
def test_a_fault_is_recorded_once_and_stops_the_process(event: st.Fault) -> None:
    agent, outputs = run(in_turn(), event, event, event)
    assert [(o.event, *o.data.values()) for o in outputs if isinstance(o, st.Note)] == [
        ("fault", event.what, event.detail), ("recovery", event.what), ("agent-stopping", event.what),
    ]  # fmt: skip
    assert agent.phase is Phase.STOPPING


def test_the_agent_stays_busy_after_a_lease_until_the_tree_is_gone() -> None:
    idle = replace(in_turn(), phase=Phase.IDLE, said="idle", turn=None)
    agent, _ = run(idle, st.Got(wire.Tasks(frozenset({"b1"}))), st.LeaseEnded("released"))
    agent, outputs = run(agent, st.Due("drain", "busy"))
    assert (agent.phase, agent.busy) == (Phase.STOPPING, True)
    assert not [o for o in outputs if isinstance(o, st.Busy)]
    _, outputs = run(agent, st.Exited(143, ""))
    assert [o for o in outputs if isinstance(o, st.Gone)]


def test_questions_end_with_their_process() -> None:
    agent, _ = run(in_turn(), st.Got(QUESTION), st.Exited(1, "gone"))
    assert (agent.questions, agent.phase) == ({}, Phase.ASLEEP)
    assert run(agent, st.AnswerQuestion("q1"))[1] == []


def test_a_new_conversation_increments_the_generation() -> None:
    agent, outputs = run(Agent("old", known=True), st.BeginConversation("new", "asked"))
    assert (agent.conversation, agent.generation, agent.known) == ("new", 2, False)
    note = {"conversation": "new", "generation": 2, "why": "asked"}
    assert [(o.event, o.data) for o in outputs if isinstance(o, st.Note)] == [("conversation", note)]


def test_an_owner_in_doubt_does_not_count_as_an_agent_failure() -> None:
    agent, outputs = run(in_turn(), st.Exited(143, "", "owner-doubt"))
    assert ended(outputs) == [st.TurnOutcome.LOST]
    assert (agent.phase, agent.fails) == (Phase.ASLEEP, 0)
    assert run(in_turn(), st.Exited(143, ""))[0].fails == 1


def test_a_guard_that_does_not_respond_is_killed() -> None:
    stopping, outputs = run(in_turn(), st.Stop("forced"))
    assert ("killed", "0") in timers(stopping, Times()) and outputs[-1] == st.Kill("forced")
    stopping, outputs = run(stopping, st.Due("killed", "0"))
    assert stopping.phase is Phase.STOPPING and outputs[-1] == st.Kill("forced", hard=True)
    assert run(in_turn(), st.Due("killed", "0")) == (in_turn(), [])
    assert timers(replace(stopping, why="owner-restart"), Times()) == {}, "we do not kill a predecessor's agent here"


def test_a_lost_history_is_not_a_failure_and_the_waiting_turn_runs_in_the_next_conversation() -> None:
    dying = replace(in_turn(written=False), phase=Phase.STARTING, fails=2)
    agent, outputs = run(
        dying, st.BeginConversation("new", "history-lost"), st.Exited(1, "No conversation found", "history-lost")
    )
    assert (agent.phase, agent.conversation, agent.fails) == (Phase.STARTING, "new", 2)
    assert outputs[-1] == st.Launch(resume=False) and ended(outputs) == []


SENT = {"taken": False, "started": False, "lifecycle": None}
INIT = st.Got(wire.Init("c", "m", NEEDED, "1"))


def test_a_prompt_folded_into_a_foreign_turn_starts_without_its_own_init() -> None:
    """Otherwise `start_deadline` stops it although it runs."""
    sent = replace(in_turn(**SENT), said="idle")
    agent, outputs = run(sent, st.Got(wire.StateChanged("running")), INIT, st.Got(wire.Lifecycle("u", "queued")))
    assert st.TurnStarted("t") not in outputs and ("start", "t") in timers(agent, Times())
    agent, outputs = run(agent, st.Got(wire.Lifecycle("u", "started")))
    assert st.TurnStarted("t") in outputs and ("start", "t") not in timers(agent, Times())


def test_a_turn_is_started_by_its_own_init_and_by_its_result_at_the_latest() -> None:
    taken, outputs = run(in_turn(**SENT), st.Got(wire.Lifecycle("u", "started")))
    assert st.TurnStarted("t") not in outputs
    for line in (INIT, st.Got(wire.Result(("u",), None, False, "completed", "done"))):
        assert run(taken, line)[1].count(st.TurnStarted("t")) == 1
    assert st.TurnStarted("t") not in run(taken, st.Got(wire.Result((), None, True, "api_error", "")))[1]


FENCED = (st.Got(wire.Response("r1", True, {}, None)),)


def closing(leased: bool, strays: bool) -> tuple[Agent, list[st.Output]]:
    """Return the agent when the worker's turn is over, its fence is answered and the tree was examined."""
    agent, _ = run(replace(in_turn(cancel=None if leased else "preempted"), leased=leased), *ENDING)
    return run(agent, st.TreeExamined(strays), *FENCED)


def test_strays_keep_a_turn_open_after_its_lease() -> None:
    assert ended(closing(leased=False, strays=False)[1]) == [st.TurnOutcome.CANCELLED]
    agent, outputs = closing(leased=False, strays=True)
    assert ended(outputs) == [] and st.Busy(True) in outputs
    looking, outputs = run(agent, st.Due("look", str(agent.count)))
    assert written(outputs) == ["fence"]
    _, outputs = run(looking, st.TreeExamined(False), st.Got(wire.Response("r2", True, {}, None)))
    assert ended(outputs) == [st.TurnOutcome.CANCELLED] and st.Busy(False) in outputs
    stopping, outputs = run(agent, st.Due("strays", agent.conversation))
    assert stopping.phase is Phase.STOPPING and st.Kill("strays") in outputs
    assert ended(run(stopping, st.Exited(143))[1]) == [st.TurnOutcome.CANCELLED]


def test_strays_may_run_only_between_the_turns_of_one_lease() -> None:
    agent, outputs = closing(leased=True, strays=True)
    assert len(ended(outputs)) == 1 and st.Busy(True) in outputs
    over, outputs = run(agent, st.LeaseEnded("released"))
    assert written(outputs) == ["fence"] and over.busy
    assert st.Busy(False) in run(over, st.TreeExamined(False), st.Got(wire.Response("r2", True, {}, None)))[1]


def has_strays_deadline(agent: Agent) -> bool:
    return ("strays", agent.conversation) in timers(agent, Times())


def test_the_deadline_of_strays_starts_only_after_the_tasks_have_stopped() -> None:
    running = replace(closing(leased=True, strays=True)[0], tasks=frozenset({"b1"}))
    over, outputs = run(running, st.LeaseEnded("released"))
    assert (written(outputs), over.busy, has_strays_deadline(over)) == (["stop_task"], True, False)
    stopped, outputs = run(over, st.Got(wire.Tasks(frozenset())), st.Got(wire.Response("r2", True, {}, None)))
    assert (written(outputs), stopped.busy, has_strays_deadline(stopped)) == (["fence"], True, False)
    left, _ = run(stopped, st.TreeExamined(True), st.Got(wire.Response("r3", True, {}, None)))
    assert (left.busy, has_strays_deadline(left)) == (True, True)


def test_the_deadline_of_strays_starts_only_after_every_response() -> None:
    agent, outputs = run(in_turn(), st.LeaseEnded("preempted"), *ENDING, st.TreeExamined(True))
    assert (written(outputs), has_strays_deadline(agent)) == (["interrupt"], False)
    agent, outputs = run(agent, st.Got(wire.Response("r1", True, {}, None)))
    assert written(outputs) == ["fence"]
    assert has_strays_deadline(run(agent, st.TreeExamined(True), st.Got(wire.Response("r2", True, {}, None)))[0])


def test_the_tree_is_examined_again_after_a_slow_response() -> None:
    agent, _ = closing(leased=False, strays=True)
    assert ("look", "1") in timers(agent, Times())
    asked, outputs = run(agent, st.Due("look", "1"))
    assert written(outputs) == ["fence"]
    assert not [name for name, _ in timers(asked, Times()) if name == "look"], "the response is awaited"
    answered, _ = run(asked, st.TreeExamined(True), st.Got(wire.Response("r2", True, {}, None)))
    assert ("look", "2") in timers(answered, Times())


def test_an_ended_task_may_have_left_strays() -> None:
    idle = replace(in_turn(), phase=Phase.IDLE, said="idle", turn=None)
    agent, outputs = run(idle, st.Got(wire.Tasks(frozenset({"b1"}))), st.LeaseEnded("released"))
    assert written(outputs) == ["stop_task"]
    agent, outputs = run(agent, st.Got(wire.Tasks(frozenset())))
    assert agent.busy and st.Busy(False) not in outputs, "stop_task has no response, and the tree was not examined"
    agent, outputs = run(agent, st.Got(wire.Response("r1", True, {}, None)))
    assert (written(outputs), agent.busy) == (["fence"], True)
    assert st.Busy(False) in run(agent, st.TreeExamined(False), st.Got(wire.Response("r2", True, {}, None)))[1]


def test_a_process_that_gets_no_slot_in_time_is_not_a_failure() -> None:
    agent = Agent("c")
    for number in range(5):
        agent, outputs = run(agent, st.Begin(AgentTurn(f"t{number}", "u", "prompt", Kind.WORKER, "m")))
        assert agent.phase is Phase.STARTING
        agent, outputs = run(agent, st.Due("start", f"t{number}"), st.Exited(None, tried=False))
        assert [(o.turn, o.reason) for o in outputs if isinstance(o, st.TurnOver)] == [(f"t{number}", "start-deadline")]
    assert (agent.phase, agent.fails) == (Phase.ASLEEP, 0)


def test_model_and_rules_are_set_again_after_a_raw_command() -> None:
    """After `/model` in a raw prompt, the next turn runs on its own model and under its own rules."""
    agent, _ = run(idle(), st.Begin(AgentTurn("t", "u", "/model other", Kind.WORKER, "m", composed=False)))
    agent, _ = closes(agent, "u")
    agent, asked = run(agent, st.Begin(AgentTurn("v", "v", "p", Kind.WORKER, "m")))
    agent, more = run(agent, st.Got(wire.Response(agent_request(agent), True, {})))
    assert [*written(asked), *written(more)] == ["rules:worker", "model:m"]


@pytest.mark.parametrize("leased", [True, False])
@pytest.mark.parametrize(
    "said",
    [
        [wire.Result(("u",), None, False, "completed", "done")],
        [wire.Result(("u",), None, False, "completed", "done"), wire.Lifecycle("u", "completed")],
        [wire.Lifecycle("u", "completed"), wire.StateChanged("idle")],
    ],
)
def test_an_end_deadline_runs_once_claude_reports_the_end_of_a_turn(said: list[wire.Message], leased: bool) -> None:
    agent, _ = run(in_turn(), *map(st.Got, said), *([] if leased else [st.LeaseEnded("released")]))
    assert timers(agent, Times())["drain", "t"] == Times().drain_deadline


def test_no_end_deadline_runs_while_the_turn_or_its_tasks_run() -> None:
    ours = st.Got(wire.Result(("u",), None, False, "completed", "done"))
    with_task, _ = run(in_turn(), st.Got(wire.Tasks(frozenset({"b1"}))), ours)
    assert [timers(agent, Times()) for agent in (in_turn(), with_task)] == [{}, {}]


def test_a_turn_that_waits_for_an_exit_starts_nothing_after_shutdown() -> None:
    stopping, _ = run(idle(), st.Stop("sleep"), st.Begin(AgentTurn("t", "t", "p", Kind.WORKER, "m")))
    agent, outputs = run(stopping, st.Stop("shutdown"), st.Exited(143, ""))
    assert agent.phase is Phase.ASLEEP and not [o for o in outputs if isinstance(o, st.Launch)]
    assert ended(outputs) == [st.TurnOutcome.FAILED]


def test_an_unknown_request_is_refused_at_once() -> None:
    _, outputs = run(in_turn(), st.Got(wire.Request("q7", "oauth_token_refresh")))
    (refused,) = [o for o in outputs if isinstance(o, st.Write)]
    assert orjson.loads(refused.data)["response"] == {
        "subtype": "error", "request_id": "q7", "error": "this host does not know such requests",
    }  # fmt: skip
