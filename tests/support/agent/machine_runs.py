"""Agents in given states, and runs of events on the agent's machine."""

from dataclasses import replace
from typing import Any

from sessiond.agent import protocol as wire
from sessiond.agent import state as st
from sessiond.agent.machine import decide
from sessiond.agent.state import Agent, AgentTurn, Phase
from sessiond.lock.rules import Kind


def in_turn(**turn: Any) -> Agent:
    """Return a leased agent that runs the worker's turn `t`."""
    open_turn = AgentTurn(
        "t", "u", "prompt", Kind.WORKER, "m", written=True, taken=True, started=True, lifecycle="started"
    )
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


def agent_request(agent: Agent) -> str:
    """Return the id of the only control request without a response."""
    (request,) = agent.requests
    return request


def ended(outputs: list[st.Output]) -> list[st.TurnOutcome]:
    return [o.outcome for o in outputs if isinstance(o, st.TurnOver)]


def idle(**changes: Any) -> Agent:
    return replace(in_turn(), phase=Phase.IDLE, said="idle", turn=None, **changes)


def closes(agent: Agent, uuid: str, cost: float | None = None) -> tuple[Agent, list[st.Output]]:
    """Run the turn `uuid` to its end. Its prompt is already written."""
    result = wire.Result((uuid,), None, False, "completed", "said", cost_usd=cost)
    agent, first = run(
        agent, st.Got(wire.StateChanged("running")), st.Got(wire.Lifecycle(uuid, "started")), st.Got(result),
        st.Got(wire.Lifecycle(uuid, "completed")), st.Got(wire.StateChanged("idle")),
    )  # fmt: skip
    agent, last = run(agent, st.Got(wire.Response(agent_request(agent), True, {})))
    return agent, first + last
