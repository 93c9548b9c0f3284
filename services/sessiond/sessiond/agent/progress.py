"""Progress that depends on the state alone: launch, send, fence request and close, as soon as possible. Pure.

Every step ends in `advance`, after any event.

A turn is over when its lifecycle is terminal, its result was read or it never started, no permission question
is open, and claude is idle. It is closed when three more things hold: every control request is answered, no
background task runs that must be stopped, and the fence request was answered while claude was idle. The fence
request is one cheap request that is written last. After the lease's end, no stray process of a tool may be left
either.
"""

from sessiond.agent import protocol as wire
from sessiond.agent import state as st
from sessiond.agent.permissions import rules_for
from sessiond.agent.state import Agent, Phase
from sessiond.agent.termination import close
from sessiond.agent.transitions import ALIVE, Draft, Move

OPEN_LIFECYCLE = frozenset({None, "queued", "started"})


def turn_over(agent: Agent) -> bool:
    """Return whether nothing of the open turn runs any more (docs/reference/agent-protocol.md, "Drain")."""
    turn = agent.turn
    if turn is None or not turn.written or turn.lifecycle in OPEN_LIFECYCLE or agent.questions:
        return False
    return (not turn.taken or turn.result is not None) and agent.said == "idle"


def only_strays_left(agent: Agent) -> bool:
    """Return whether only stray processes of tools are awaited: claude itself has finished everything."""
    over = agent.turn is None or turn_over(agent)
    return agent.strays and over and not agent.tasks and all(what == "fence" for what in agent.requests.values())


def advance(d: Draft) -> None:
    """Do what the state allows now."""
    if d.agent.phase is Phase.ASLEEP and d.agent.turn is not None:
        d.go(Move.WANTED)
        d.note("agent-starting", conversation=d.agent.conversation, resume=d.agent.known)
        d.out.append(st.Launch(d.agent.known))
    if d.agent.phase in (Phase.IDLE, Phase.IN_TURN):
        _stop_tasks(d)
        if _settled(d):
            _send(d)
    if d.agent.phase is Phase.STOPPING:
        return  # the tree may still run after the lease; `exited` reports its end
    busy = d.agent.phase in ALIVE and bool(d.agent.tasks or d.agent.dirty or d.agent.strays)
    if busy != d.agent.busy:
        d.set(busy=busy)
        d.out.append(st.Busy(busy))


def _stop_tasks(d: Draft) -> None:
    if d.agent.leased:
        return
    for task in sorted(d.agent.tasks - d.agent.stopped_tasks):
        d.set(stopped_tasks=d.agent.stopped_tasks | {task})
        d.ask("stop_task", lambda rid, task=task: wire.stop_task(rid, task))  # type: ignore[misc]


def _settled(d: Draft) -> bool:
    """Send the fence request for a turn that is over, then close the turn. Return True if only a send is left."""
    over = turn_over(d.agent)
    waiting = d.agent.turn is not None and d.agent.turn.written and not over
    if waiting or d.agent.said != "idle" or d.agent.requests or d.agent.questions:
        return False
    strays = d.agent.strays and not d.agent.leased
    if not (over or d.agent.dirty or strays):
        return True
    if not d.agent.leased and d.agent.tasks:
        return False
    if not d.agent.fenced:
        d.ask("fence", wire.cost)
        return False
    if strays:
        return False
    d.set(dirty=False, foreign=False, fenced=False)  # a fence request counts once; later events need their own
    if over and d.agent.turn is not None:
        close(d, d.agent.turn)
    return d.agent.phase is Phase.IDLE


def _send(d: Draft) -> None:
    turn = d.agent.turn
    if turn is None or turn.written or turn.cancel is not None:
        return
    if d.agent.rules is not turn.kind:
        allow, deny = rules_for(turn.kind)
        d.ask(f"rules:{turn.kind.value}", lambda rid: wire.apply_rules(rid, allow, deny))
        d.turn(asked=d.last_request)
    elif d.agent.model != turn.model:
        d.ask(f"model:{turn.model}", lambda rid: wire.set_model(rid, turn.model))
        d.turn(asked=d.last_request)
    else:
        d.go(Move.SENT)
        d.turn(written=True)
        if not d.agent.known:
            d.note("conversation", conversation=d.agent.conversation, generation=d.agent.generation, why="first prompt")
        d.set(known=True, fenced=False)
        if not turn.composed:  # it may be a command that changes them, so the next turn sets its own
            d.set(model=None, rules=None)
        d.out.append(st.Write("user", wire.user(turn.uuid, turn.prompt, composed=turn.composed)))
