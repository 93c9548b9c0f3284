"""The two machines as one: what an event does to lock and agent together. Pure.

Each machine knows only itself. Here the lease's end becomes the agent's cancel, the agent's closing
becomes the lock's, and so on until both are quiet; the owner loop commits the sum as one step.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from sessiond.agent import machine as agent_machine
from sessiond.agent import state as st
from sessiond.agent.state import Agent
from sessiond.lock import events as ev
from sessiond.lock import machine as lock_machine
from sessiond.lock.state import Lock


@dataclass(slots=True)
class Plan:
    """One step of a session: both states after it, the ledger, and what to do once it is committed."""

    lock: Lock
    agent: Agent
    ledger: list[ev.Entry] = field(default_factory=list)
    effects: list[ev.Effect] = field(default_factory=list)
    outputs: list[st.Output] = field(default_factory=list)

    @property
    def grant(self) -> ev.Granted | None:
        """The grant of this step, a repeated answer aside."""
        fresh = [e for e in self.effects if isinstance(e, ev.Granted)]
        return fresh[-1] if fresh else None


def compose(lock: Lock, agent: Agent, events: Sequence[ev.Event | st.Event]) -> Plan:
    """Runs `events` and all that follows from them.

    Raises what the machines raise: events.Refused and rules.QueueFull (nothing happened),
    events.InvariantBroken and ValueError (a state that must not be).
    """
    plan = Plan(lock, agent)
    queue = deque(events)
    while queue:
        event = queue.popleft()
        if isinstance(event, _LOCK_EVENTS):
            step = lock_machine.decide(plan.lock, event)
            plan.lock = step.lock
            plan.ledger += step.ledger
            plan.effects += step.effects
            queue.extend(_for_agent(step.effects))
        else:
            plan.agent, outputs = agent_machine.decide(plan.agent, event)
            plan.outputs += outputs
            plan.ledger += [(o.event, dict(o.data)) for o in outputs if isinstance(o, st.Note)]
            queue.extendleft(reversed(_for_lock(outputs)))
    return plan


_LOCK_EVENTS = (
    ev.Take, ev.Wait, ev.WaitOver, ev.HangUp, ev.Claim, ev.Release, ev.GiveUp, ev.Withdraw, ev.ForceRelease,
    ev.AcceptTurn, ev.TurnClosed, ev.TasksChanged, ev.Reaped, ev.Due,
)  # fmt: skip


def _for_agent(effects: Sequence[ev.Effect]) -> list[st.Event]:
    found: list[st.Event] = []
    for effect in effects:
        match effect:
            case ev.LeaseOver(reason=reason):
                found.append(st.LeaseEnded(reason.value))
            case ev.Granted():
                found.append(st.LeaseBegan())
            case ev.RecoverNow():
                found.append(st.Stop("forced"))
    return found


def _for_lock(outputs: Sequence[st.Output]) -> list[ev.Event | st.Event]:
    gone = any(isinstance(o, st.Gone) for o in outputs)
    found: list[ev.Event | st.Event] = []
    for output in outputs:
        match output:
            case st.TurnOver(turn=turn) if not gone:
                found.append(ev.TurnClosed(turn))
            case st.Busy(running=running) if not gone:
                found.append(ev.TasksChanged(running))
            case st.Gone():
                found.append(ev.Reaped())
    return found
