"""The agent's state machine: `decide(agent, event)` returns the next state and its outputs. Pure.

Only this machine writes lines to the agent. A cancel names its turn; the machine drops a cancel for a
closed turn or a dead process. Every step ends in `progress.advance`, which sends prompts and fence requests
and closes turns as soon as the state allows it.

`transitions` has the table of states; `Draft.go` is the only way to change the phase. `messages` handles
the agent's lines. `termination` handles the end of a turn or of the process. This module handles all other events.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from sessiond.agent import protocol as wire
from sessiond.agent import state as st
from sessiond.agent.messages import answer, read
from sessiond.agent.progress import OPEN_LIFECYCLE, advance, only_strays_left
from sessiond.agent.state import Agent, Phase
from sessiond.agent.termination import backoff, cancel, exited, fail, recover, stop
from sessiond.agent.transitions import ALIVE, Draft, Move
from sessiond.lock.rules import Times

LOOK_AGAIN: Final = 0.05
"""Seconds between two checks for stray processes."""
STRAYS_END: Final = 1.0
"""Seconds for which only stray processes of tools may keep a lease draining. Then the tree is stopped."""
_RECOVERED: Final = {
    "drain": "drain-deadline", "not-taken": "not-taken", "strays": "strays", "answer": "no-answer",
}  # fmt: skip
KILLED_AFTER: Final = 5.0
"""Seconds that a guard has to end its tree before SIGKILL. It usually needs little more than 1 s."""


def decide(agent: Agent, event: st.Event) -> tuple[Agent, list[st.Output]]:
    """Return the agent's next state after `event`, and the outputs in order.

    Raises:
        BadMove: the table of transitions does not have this move.
        ValueError: a turn begins while another one is open.
    """
    draft = Draft(agent, event)
    _HANDLERS[type(event)](draft, event)
    advance(draft)
    return draft.agent, draft.out


def timers(agent: Agent, times: Times) -> dict[tuple[str, str], float]:
    """Return every deadline that this state asks for, in seconds from the step that first asked for it.

    The keys are (name, subject).
    """
    found: dict[tuple[str, str], float] = {}
    for part in (_start_timers, _turn_timers, _drain_timers, _idle_timers):
        found |= part(agent, times)
    return found


def _start_timers(agent: Agent, times: Times) -> dict[tuple[str, str], float]:
    turn = agent.turn
    found: dict[tuple[str, str], float] = {}
    if agent.phase is Phase.BROKEN:
        found["backoff", str(agent.fails)] = backoff(agent.fails)
    if agent.phase is Phase.STOPPING and agent.why != st.OWNER_RESTART:
        found["killed", str(agent.count)] = KILLED_AFTER
    if turn is not None and not turn.started and turn.cancel is None:
        found[_start_timer(agent, turn), turn.id] = times.start_deadline
    if agent.phase is Phase.STARTING:
        # The subject names the process, so that each process has its own deadline.
        found["start", f"{agent.conversation} {agent.fails}"] = times.start_deadline
    return found


def _turn_timers(agent: Agent, times: Times) -> dict[tuple[str, str], float]:
    turn = agent.turn
    found: dict[tuple[str, str], float] = {}
    if turn is not None and turn.written and turn.lifecycle is None:
        found["not-taken", turn.id] = times.not_taken
    if turn is not None and turn.timeout is not None and turn.cancel is None:
        found["timeout", turn.id] = turn.timeout
    return found


def _drain_timers(agent: Agent, times: Times) -> dict[tuple[str, str], float]:
    turn = agent.turn
    found: dict[tuple[str, str], float] = {}
    if agent.phase not in ALIVE:
        return found
    cancelling = turn is not None and (turn.cancel is not None or not agent.leased)
    # claude has reported the end of the turn: the messages that are still missing come at once or never.
    said_over = turn is not None and (turn.result is not None or turn.lifecycle not in OPEN_LIFECYCLE)
    closing = said_over and not agent.tasks
    if cancelling or closing or (agent.busy and not agent.leased):
        subject = turn.id if turn is not None else "busy"
        found["drain", subject] = times.drain_deadline
        found["again", subject] = times.drain_deadline / 2
    if not agent.leased and only_strays_left(agent):
        if not agent.requests:  # runs from the answer to the fence request
            found["look", str(agent.count)] = LOOK_AGAIN
        found["strays", agent.conversation] = STRAYS_END
    return found


def _idle_timers(agent: Agent, times: Times) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], float] = {}
    if agent.phase is Phase.IDLE and agent.turn is None and not agent.busy:
        found["sleep", agent.conversation] = times.idle
    if agent.phase in (Phase.IDLE, Phase.IN_TURN) and agent.requests:
        request, what = next(iter(agent.requests.items()))  # the oldest
        # A new model is checked with the API, so it takes longer. `not_taken` keeps a short `drain_deadline`
        # from stopping a process that still answers.
        local = max(times.drain_deadline, times.not_taken)
        found["answer", request] = times.start_deadline if what.startswith("model:") else local
    return found


def _start_timer(agent: Agent, turn: st.AgentTurn) -> str:
    """Return the name of the deadline of a turn that has not started.

    A turn that inherits another turn's process gets the whole deadline for each phase: for that process, for
    its end, and for the start of the next one.
    """
    if not turn.inherited:
        return "start"
    return "gone" if agent.phase is Phase.STOPPING else "inherited"


# ---- requests of the owner loop --------------------------------------------------------------


def _begin(d: Draft, e: st.Begin) -> None:
    if d.agent.turn is not None:
        raise ValueError(f"one_turn_open: Begin {e.turn.id} in {d.agent.phase.value}, {d.agent.turn.id} is open")
    d.set(turn=replace(e.turn, inherited=d.agent.phase is not Phase.ASLEEP))
    if d.agent.phase is Phase.BROKEN:
        fail(d, f"agent-broken: {d.agent.why}")


def _lease_began(d: Draft, _: st.LeaseBegan) -> None:
    # The first turn of each lease sets the permission rules again: nothing is inherited.
    d.set(leased=True, rules=None)


def _lease_ended(d: Draft, e: st.LeaseEnded) -> None:
    # Stray processes seen before may belong to a task that is stopped only now, so check again.
    d.set(leased=False, dirty=d.agent.dirty or d.agent.strays, strays=False)
    if d.agent.turn is not None:
        cancel(d, st.Cancel(d.agent.turn.id, e.why))


def _tree_examined(d: Draft, e: st.TreeExamined) -> None:
    if d.agent.phase in ALIVE:
        d.set(strays=e.strays)


def _spawned(d: Draft, _: st.Spawned) -> None:
    if d.agent.phase is Phase.STARTING:
        d.set(model=d.agent.default_model)
        d.ask("initialize", wire.initialize)


def _begin_conversation(d: Draft, e: st.BeginConversation) -> None:
    generation = d.agent.generation + 1
    d.set(conversation=e.conversation, generation=generation, known=False)
    d.note("conversation", conversation=e.conversation, generation=generation, why=e.why)


# ---- timers ----------------------------------------------------------------------------------


def _due(d: Draft, e: st.Due) -> None:
    turn = d.agent.turn
    if e.name == "backoff" and d.agent.phase is Phase.BROKEN:
        d.go(Move.RESTED)
    elif e.name == "timeout":
        cancel(d, st.Cancel(e.subject, "timeout"))
    elif e.name == "again" and d.agent.phase is Phase.IN_TURN:
        d.ask("interrupt", wire.interrupt)
    elif e.name == "sleep" and d.agent.phase is Phase.IDLE and turn is None:
        stop(d, st.Stop("sleep"))
    elif e.name in ("start", "inherited", "gone") and turn is not None and turn.id == e.subject:
        _not_started(d, turn)
    elif e.name == "start" and d.agent.phase is Phase.STARTING:
        recover(d, "start-deadline")
    elif e.name == "killed" and d.agent.phase is Phase.STOPPING:
        d.note("agent-killed", why=d.agent.why)
        d.out.append(st.Kill(d.agent.why, hard=True))
    elif e.name == "look":
        d.set(fenced=False)
    elif e.name in _RECOVERED:
        recover(d, _RECOVERED[e.name])


def _not_started(d: Draft, turn: st.AgentTurn) -> None:
    """Fail a turn that was not written and recover the process. A written turn ends when its process is reaped."""
    if not turn.written:
        fail(d, "start-deadline")
    recover(d, "start-deadline")


def _fault(d: Draft, e: st.Fault) -> None:
    """Stop using the process, because more of its output may be missing. Add at most one entry for each process."""
    if d.agent.phase in ALIVE:
        d.note("fault", what=e.what, detail=e.detail[:200])
        recover(d, e.what)


_HANDLERS: Final[Mapping[type, Callable[[Draft, Any], None]]] = {
    st.Begin: _begin,
    st.Cancel: cancel,
    st.LeaseBegan: _lease_began,
    st.LeaseEnded: _lease_ended,
    st.Spawned: _spawned,
    st.Got: read,
    st.TreeExamined: _tree_examined,
    st.Fault: _fault,
    st.Exited: exited,
    st.Stop: stop,
    st.AnswerQuestion: answer,
    st.BeginConversation: _begin_conversation,
    st.Due: _due,
}
