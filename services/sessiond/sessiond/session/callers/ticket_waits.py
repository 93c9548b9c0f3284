"""Waits on tickets: a holder is present while it is parked, and answered once."""

from sessiond.lock import events as ev
from sessiond.problems import away, ended, no_ticket, superseded
from sessiond.session import views
from sessiond.session.callers.turns import TurnBook
from sessiond.session.callers.waiters import Desk, Parked
from sessiond.session.inbox import Inbox
from sessiond.session.pipeline.steps import Steps
from sessiond.session.state import Standing


class Waits:
    """One session's. `park` is for request greenlets; the rest runs in the owner loop."""

    def __init__(self, standing: Standing, inbox: Inbox, desk: Desk, steps: Steps, turns: TurnBook) -> None:
        self._standing, self._inbox, self._desk, self._steps, self._turns = standing, inbox, desk, steps, turns

    def park(self, ticket: str, holder: str) -> Parked:
        """Makes `holder` present on the ticket; the answer comes through what is returned. Raises Problem."""
        self._inbox.door()
        parked = Parked(ticket, holder, self._leave)
        self._inbox.post(lambda: self._wait(parked), parked)
        return parked

    def living(self, ticket: str) -> None:
        """Raises the Problem of a ticket that has ended or never was."""
        if ticket in self._standing.lock.tickets:
            return
        found = self._turns.read(f"ended:{ticket}")
        if found is None:
            raise no_ticket()
        raise ended(str(found["reason"]))

    def _leave(self, parked: Parked, gone: bool) -> None:
        self._inbox.post(lambda: self._left(parked, gone), parked)

    def _wait(self, parked: Parked) -> None:
        self.living(parked.ticket)
        plan = self._steps.decide(ev.Wait(parked.ticket, parked.holder))
        # Who sits there is told as the seat is taken; the effect would reach the new one.
        plan.effects = [e for e in plan.effects if not isinstance(e, ev.Displaced)]
        self._steps.commit(plan, first=lambda: self._seat(parked))

    def _seat(self, parked: Parked) -> None:
        """A newer wait of the same holder replaces an older one, whose caller is answered `waiting`."""
        if not parked.open:
            return
        before = self._desk.sit(parked)
        if before is not None and before.holder == parked.holder:
            before.tell(self._waiting(parked.ticket))
        elif before is not None:
            before.refuse(superseded())

    def _left(self, parked: Parked, gone: bool) -> None:
        if not self._desk.stand_up(parked):
            if parked.open:
                parked.refuse(away())
            return
        event = ev.HangUp if gone else ev.WaitOver
        self._steps.step(event(parked.ticket, parked.holder))
        if parked.ticket in self._standing.lock.tickets:
            parked.tell(self._waiting(parked.ticket))
        else:
            parked.refuse(ended("withdrawn"))

    def _waiting(self, ticket: str) -> dict[str, object]:
        lock = self._standing.lock
        return views.Queued(lock).waiting(lock.tickets[ticket])
