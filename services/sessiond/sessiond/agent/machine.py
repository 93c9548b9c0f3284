"""The agent's machine: `decide(agent, event)` gives the next state and what to do. Pure.

Two rules. First: a line is written only from here, and a cancel names its turn; what belongs to
a closed turn or a dead process is dropped. Second: progress is a level; every step ends in
`progress.advance`, which sends, fences and closes as soon as the state allows it.

The table of states is in moves.py, and `Draft.go` the only way between them. What each event does: a
line of the agent in lines.py, an end (of a turn, of the process) in ending.py, the rest here.
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
STRAYS_END: Final = 1.0
"""Seconds that what tools left behind has for its end, once nothing else is waited for; then the tree is ended."""
_RECOVERED: Final = {
    "drain": "drain-deadline", "not-taken": "not-taken", "strays": "strays", "answer": "no-answer",
}  # fmt: skip
KILLED_AFTER: Final = 5.0
"""Seconds that a guard, a predecessor's too, has to end its tree (it needs little more than 1 s); then SIGKILL."""


def decide(agent: Agent, event: st.Event) -> tuple[Agent, list[st.Output]]:
    """The step that `event` makes of `agent`: its next state, and what to do, in order.

    Raises moves.BadMove for a move that the table does not have, ValueError for a second open turn.
    """
    draft = Draft(agent, event)
    _HANDLERS[type(event)](draft, event)
    advance(draft)
    return draft.agent, draft.out


def timers(agent: Agent, times: Times) -> dict[tuple[str, str], float]:
    """(name, subject) of every deadline that this state asks for, in seconds from its first asking."""
    turn = agent.turn
    found: dict[tuple[str, str], float] = {}
    if agent.phase is Phase.BROKEN:
        found["backoff", str(agent.fails)] = backoff(agent.fails)
    if agent.phase is Phase.STOPPING and agent.why != st.OWNER_RESTART:
        found["killed", str(agent.count)] = KILLED_AFTER
    if turn is not None and not turn.started and turn.cancel is None:
        found[_waits_for(agent, turn), turn.id] = times.start_deadline
    if agent.phase is Phase.STARTING:
        found["start", f"{agent.conversation} {agent.fails}"] = times.start_deadline  # each process has its own
    if turn is not None and turn.written and turn.lifecycle is None:
        found["not-taken", turn.id] = times.not_taken
    if turn is not None and turn.timeout is not None and turn.cancel is None:
        found["timeout", turn.id] = turn.timeout
    cancelling = turn is not None and (turn.cancel is not None or not agent.leased)
    # claude says that it is over: what it then owes (the rest of it, idle, the fence) comes at once or never.
    said_over = turn is not None and (turn.result is not None or turn.lifecycle not in OPEN_LIFECYCLE)
    closing = said_over and not agent.tasks
    if agent.phase in ALIVE and (cancelling or closing or (agent.busy and not agent.leased)):
        subject = turn.id if turn is not None else "busy"
        found["drain", subject] = times.drain_deadline
        found["again", subject] = times.drain_deadline / 2
    if agent.phase in ALIVE and not agent.leased and only_strays_left(agent):
        if not agent.requests:  # from the answer on, however long that took
            found["look", str(agent.count)] = LOOK_AGAIN
        found["strays", agent.conversation] = STRAYS_END
    if agent.phase is Phase.IDLE and turn is None and not agent.busy:
        found["sleep", agent.conversation] = times.idle
    if agent.phase in (Phase.IDLE, Phase.IN_TURN) and agent.requests:
        request, what = next(iter(agent.requests.items()))  # the oldest
        # Only for a new model the API is asked. And a short `drain_deadline` must cost no process that answers.
        local = max(times.drain_deadline, times.not_taken)
        found["answer", request] = times.start_deadline if what.startswith("model:") else local
    return found


def _waits_for(agent: Agent, turn: st.Turn) -> str:
    """What a turn that has not started waits for.

    What somebody else's process takes is not its own time: that one's end, and the next one's start, have their whole.
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
    # Rules are set again with each lease's first turn: nothing is inherited.
    d.set(leased=True, rules=None)


def _lease_ended(d: Draft, e: st.LeaseEnded) -> None:
    # What was seen before may be a task that is stopped only now: it is looked for again, behind the fence.
    d.set(leased=False, dirty=d.agent.dirty or d.agent.strays, strays=False)
    if d.agent.turn is not None:
        cancel(d, st.Cancel(d.agent.turn.id, e.why))


def _looked(d: Draft, e: st.Looked) -> None:
    if d.agent.phase in ALIVE:
        d.set(strays=e.strays)


def _spawned(d: Draft, _: st.Spawned) -> None:
    if d.agent.phase is Phase.STARTING:
        d.set(model=d.agent.default_model)
        d.ask("initialize", wire.initialize)


def _afresh(d: Draft, e: st.Afresh) -> None:
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


def _not_started(d: Draft, turn: st.Turn) -> None:
    """This turn's time is over, and nobody else's: one that waits when the process is gone has its own."""
    if not turn.written:
        fail(d, "start-deadline")
    recover(d, "start-deadline")


def _fault(d: Draft, e: st.Fault) -> None:
    """What else is missing is unknown, so the process is not used any further; told once a process."""
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
    st.Looked: _looked,
    st.Fault: _fault,
    st.Exited: exited,
    st.Stop: stop,
    st.Answer: answer,
    st.Afresh: _afresh,
    st.Due: _due,
}
