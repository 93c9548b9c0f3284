"""Handles the items of the agent, and the commands about it."""

import contextlib
import uuid
from typing import Any, Final

import gevent

from sessiond.agent import protocol
from sessiond.agent import state as st
from sessiond.agent.transitions import ALIVE
from sessiond.problems import Problem
from sessiond.session.agent.events import exit_events, line_events
from sessiond.session.agent.items import AgentEvent, AgentLines
from sessiond.session.commands import AnswerQuestion, NewConversation, RestartAgent, SleepAgent
from sessiond.session.fault_points import QUESTION, hold
from sessiond.session.handlers.due_timers import fire_due_timers
from sessiond.session.inbox import AlreadyAnswered
from sessiond.session.pipeline.runner import Pipeline
from sessiond.session.state import conversation_of

YIELD_EVERY: Final = 64
"""Lines after which other greenlets run and timers are checked: one read may bring some thousand lines."""


def agent_lines(pipeline: Pipeline, item: AgentLines) -> None:
    """Read the lines of the current process."""
    link, state = pipeline.context.link, pipeline.context.state
    if not link.accepts(item):
        return
    for number, text in enumerate(item.lines, 1):
        if number % YIELD_EVERY == 0:
            gevent.sleep(0)
            with contextlib.suppress(AlreadyAnswered):
                fire_due_timers(pipeline)
        if state.agent.phase not in ALIVE:
            break  # ignore the lines of a process that was asked to end
        if not text.strip():
            continue
        try:
            line = protocol.parse(text)
        except protocol.ProtocolError as error:
            pipeline.step(st.Fault("garbage", str(error)))
            continue
        _read(pipeline, line, len(text))
    link.resume_reading()


def _read(pipeline: Pipeline, line: protocol.Line, size: int) -> None:
    """Decide one line. Most lines make no step and only go to the turn's reader."""
    context = pipeline.context
    events = line_events(line.message, context.state.agent, context.link)
    plan = pipeline.decide(*events)
    only_forwarded = all(isinstance(output, st.Forward) for output in plan.outputs)
    if any(isinstance(output, st.Forward) for output in plan.outputs):
        context.turns.feed(line.raw, size)
    if plan.agent is context.state.agent and only_forwarded:
        return
    plan = pipeline.carry_out(plan, *events)
    for output in plan.outputs:
        if isinstance(output, st.Asked):
            _answer(pipeline, AnswerQuestion(output.request))


def _answer(pipeline: Pipeline, command: AnswerQuestion) -> None:
    """Answer the agent's question at once. A test may keep it open with a fault point, outside of the loop."""

    def held() -> None:
        hold(pipeline.context.settings.hooks_dir, QUESTION)
        pipeline.context.inbox.post(command)

    if pipeline.context.settings.hooks_dir is None:
        answer_question(pipeline, command)
    else:
        gevent.spawn(held)


def agent_event(pipeline: Pipeline, item: AgentEvent) -> None:
    """Make a step for the start, a fault or the end of the current process."""
    link = pipeline.context.link
    if not link.accepts(item):
        return
    match item.event:
        case st.Spawned():
            pipeline.step(item.event, ledger=[("agent-started", {"guard": link.guard})])
        case st.Exited():
            pipeline.step(*exit_events(item.event, pipeline.context.state.agent.conversation))
        case st.Fault():
            pipeline.step(item.event)


def answer_question(pipeline: Pipeline, command: AnswerQuestion) -> None:
    """Answer the question with this id, unless the agent took it back."""
    pipeline.step(st.AnswerQuestion(command.request))


def sleep_agent(pipeline: Pipeline, command: SleepAgent) -> None:
    """Put the agent to sleep if it is still idle."""
    if pipeline.context.may_sleep() is not None:
        pipeline.step(st.Stop("sleep"))


def restart_agent(pipeline: Pipeline, command: RestartAgent) -> None:
    """Stop the agent. The next turn resumes the conversation."""
    pipeline.step(st.Stop("restart"), ledger=[("agent-restart", {"by": command.by})])


def new_conversation(pipeline: Pipeline, command: NewConversation) -> dict[str, Any]:
    """Begin a new conversation with the next turn. Refused while a turn is open."""
    state = pipeline.context.state
    if state.lock.turn is not None:
        raise Problem("turn-open", 409, "A turn is still open", turn=state.lock.turn)
    pipeline.step(st.BeginConversation(str(uuid.uuid4()), f"asked by {command.by}"), st.Stop("conversation"))
    return conversation_of(state.agent)
