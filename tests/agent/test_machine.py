"""The agent's machine: its table, and what holds a turn open."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from sessiond.agent import protocol as wire
from sessiond.agent import state as st
from sessiond.agent.machine import decide
from sessiond.agent.moves import MOVES, BadMove, Draft, Move
from sessiond.agent.state import Agent, Phase, Turn
from sessiond.lock.rules import Kind

QUESTION = wire.Question("q1", "Write", {"file_path": "/work/.mcp.json"})


def in_turn(**turn: Any) -> Agent:
    """An agent in the middle of the worker's turn `t`, leased."""
    open_turn = Turn("t", "u", "prompt", Kind.WORKER, "m", written=True, taken=True, started=True, lifecycle="started")
    return Agent(
        "c", known=True, cwd="/work", phase=Phase.IN_TURN, leased=True, said="running", model="m", rules=Kind.WORKER,
        turn=replace(open_turn, **turn),
    )  # fmt: skip


def run(agent: Agent, *events: st.Event) -> tuple[Agent, list[st.Output]]:
    found: list[st.Output] = []
    for event in events:
        agent, outputs = decide(agent, event)
        found += outputs
    return agent, found


def written(outputs: list[st.Output]) -> list[str]:
    return [o.what for o in outputs if isinstance(o, st.Write)]


def ended(outputs: list[st.Output]) -> list[st.Outcome]:
    return [o.outcome for o in outputs if isinstance(o, st.TurnOver)]


ENDING = (
    st.Got(wire.Lifecycle("u", "cancelled")),
    st.Got(wire.Result(("u",), None, True, "aborted_tools", "")),
    st.Got(wire.StateChanged("idle")),
)


@pytest.mark.parametrize(("phase", "move"), [p for p in product(Phase, Move) if p[1] not in MOVES[p[0]]])
def test_a_move_that_the_table_does_not_have_is_refused_by_name(phase: Phase, move: Move) -> None:
    draft = Draft(Agent("c", phase=phase), st.Spawned())
    with pytest.raises(BadMove, match=f"Spawned: {move.value}, in {phase.value}"):
        draft.go(move)


def test_a_second_turn_names_the_event_and_the_state() -> None:
    with pytest.raises(ValueError, match="one_turn_open: Begin v in in_turn, t is open"):
        decide(in_turn(), st.Begin(Turn("v", "v", "p", Kind.WORKER, "m")))


def test_a_question_is_answered_by_the_leases_kind() -> None:
    agent, asked = run(in_turn(), st.Got(QUESTION))
    assert (asked, list(agent.questions)) == ([st.Asked("q1")], ["q1"])
    agent, outputs = run(agent, st.Answer("q1"))
    assert (written(outputs), agent.questions) == (["allow"], {})
    agent, outputs = run(in_turn(kind=Kind.HANDLER), st.Got(replace(QUESTION, tool="Bash")), st.Answer("q1"))
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
def test_what_is_asked_is_for_the_worker_and_inside(
    kind: Kind, tool: str, given: dict[str, Any], leads_to: str | None, worker_may: bool
) -> None:
    question = wire.Question("q1", tool, given, leads_to)
    _, outputs = run(in_turn(kind=kind), st.Got(question), st.Answer("q1"))
    assert written(outputs) == ["allow" if worker_may and kind is Kind.WORKER else "deny"]


def test_a_cancelled_turn_with_an_open_question_closes_once_it_is_taken_back() -> None:
    agent, outputs = run(in_turn(), st.Got(QUESTION), st.LeaseEnded("preempted"))
    assert written(outputs) == ["interrupt"]
    (interrupt,) = agent.requests
    agent, outputs = run(agent, *ENDING, st.Got(wire.Response(interrupt, True, {})))
    assert (written(outputs), ended(outputs)) == ([], []), "a question is open: the turn is not over"
    agent, outputs = run(agent, st.Got(wire.QuestionCancelled("q1")))
    assert written(outputs) == ["fence"]
    (fence,) = agent.requests
    agent, outputs = run(agent, st.Got(wire.Response(fence, True, {})))
    assert (ended(outputs), agent.phase) == ([st.Outcome.CANCELLED], Phase.IDLE)
    assert run(agent, st.Answer("q1"))[1] == [], "a late answer is no line any more"


def test_a_fence_with_an_interrupt_written_behind_it_is_none() -> None:
    over = (st.Got(wire.Result(("u",), None, False, "completed", "done")), st.Got(wire.Lifecycle("u", "completed")))
    agent, outputs = run(in_turn(), *over, st.Got(wire.StateChanged("idle")), st.LeaseEnded("preempted"))
    assert written(outputs) == ["fence", "interrupt"]
    fence, interrupt = agent.requests
    agent, outputs = run(agent, st.Got(wire.Response(fence, True, {})), st.Got(wire.Response(interrupt, True, {})))
    assert (written(outputs), ended(outputs)) == (["fence"], [])
    (fence,) = agent.requests
    assert ended(run(agent, st.Got(wire.Response(fence, True, {})))[1]) == [st.Outcome.COMPLETED]


def test_a_question_whose_turn_is_being_cancelled_is_denied() -> None:
    _, outputs = run(in_turn(), st.Got(QUESTION), st.LeaseEnded("preempted"), st.Answer("q1"))
    assert written(outputs) == ["interrupt", "deny"]


def test_no_question_outlives_its_process() -> None:
    agent, _ = run(in_turn(), st.Got(QUESTION), st.Exited(1, "gone"))
    assert (agent.questions, agent.phase) == ({}, Phase.ASLEEP)
    assert run(agent, st.Answer("q1"))[1] == []


def test_a_conversation_begun_afresh_is_a_generation_later() -> None:
    agent, outputs = run(Agent("old", known=True), st.Afresh("new", "asked"))
    assert (agent.conversation, agent.generation, agent.known) == ("new", 2, False)
    note = {"id": "new", "generation": 2, "why": "asked"}
    assert [(o.event, o.data) for o in outputs if isinstance(o, st.Note)] == [("conversation", note)]
