"""The objects that the parts of one session's owner loop share."""

from sessiond.session.agent.link import AgentLink
from sessiond.session.agent.slots import Slots
from sessiond.session.callers.ticket_waits import TicketWaits
from sessiond.session.callers.turns import Turns
from sessiond.session.callers.waiters import Waiters
from sessiond.session.commands import SleepAgent
from sessiond.session.inbox import Inbox
from sessiond.session.state import LeaseTime, SessionState
from sessiond.session.timers import SessionTimer, Timers
from sessiond.settings import Settings
from sessiond.store.store import Store


class SessionContext:
    """One session: its committed state, its inbox, timers and callers, its agent and its store.

    It is also the `slots.Sleeper` of the session's agent.
    """

    def __init__(self, settings: Settings, store: Store, slots: Slots) -> None:
        self.name = store.name
        self.settings, self.store = settings, store
        self.inbox = Inbox()
        self.state = SessionState()
        self.timers: Timers[SessionTimer] = Timers()
        self.lease_time = LeaseTime(self.state, self.timers)
        self.turns = Turns(store, self.inbox.doubt)
        self.waiters = Waiters()
        self.ticket_waits = TicketWaits(self.state, self.waiters, self.turns)
        self.link = AgentLink(self.name, settings, slots, self, self.inbox.put)

    def may_sleep(self) -> float | None:
        """Return the seconds for which the agent has been idle; None while it is needed."""
        return self.state.idle_seconds()

    def sleep_now(self) -> None:
        """Ask the loop to put the agent to sleep if it is still idle then. Never blocks."""
        self.inbox.post(SleepAgent())
