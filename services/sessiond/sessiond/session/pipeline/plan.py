"""The decision of a step: the effect of events on the lock and the agent together. Pure.

Each machine knows only itself. Here the lease's end becomes the agent's cancel, the agent's closing becomes the lock's,
and so on until neither has an event left. The owner loop commits the result as one step.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from sessiond.agent import machine as agent_machine
from sessiond.agent import state as st
from sessiond.agent.state import Agent
from sessiond.lock import events as ev
from sessiond.lock import machine as lock_machine
from sessiond.lock.rules import Presence
from sessiond.lock.state import Lock


@dataclass(slots=True)
class Plan:
    """The states of both machines after a step, its ledger entries, and what to do once it is committed."""

    lock: Lock
    agent: Agent
    ledger: list[ev.Entry] = field(default_factory=list)
    effects: list[ev.Effect] = field(default_factory=list)
    outputs: list[st.Output] = field(default_factory=list)

    @property
    def grant(self) -> ev.Granted | None:
        """The last grant among the effects, which may repeat an earlier answer."""
        grants = [e for e in self.effects if isinstance(e, ev.Granted)]
        return grants[-1] if grants else None


def compose(lock: Lock, agent: Agent, events: Sequence[ev.Event | st.Event]) -> Plan:
    """Apply `events`, and all events that follow from them.

    Raises:
        Refused, QueueFull: the events are not allowed now; nothing happened.
        InvariantBroken, ValueError: the state after them is not allowed.
    """
    plan = Plan(lock, agent)
    queue = deque(events)
    while queue:
        event = queue.popleft()
        if isinstance(event, ev.Event):
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


def forget_presence(lock: Lock, agent: Agent, waits: Callable[[str], bool]) -> Plan:
    """Return the step after an outage of Redis. It removes presence and passed-over marks.

    `waits` returns whether a waiter is registered on a ticket. Such a ticket does not change. The waiters of all others
    were refused.
    """
    absent = [t for t in lock.tickets.values() if (t.present or t.passed) and not waits(t.id)]
    tickets = {t.id: replace(t, presence=Presence.ABSENT, passed=False) for t in absent}
    after = replace(lock, tickets={**lock.tickets, **tickets}) if tickets else lock
    return Plan(after, agent, [("absent", {"ticket": t.id}) for t in absent])


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
