"""What is done once a step is committed: lines to the agent, answers to callers. It decides nothing."""

import time
from typing import Any

from sessiond.agent import state as st
from sessiond.lock import events as ev
from sessiond.problems import ended, superseded
from sessiond.session.agent.link import AgentLink
from sessiond.session.callers.turns import TurnBook
from sessiond.session.callers.waiters import Desk
from sessiond.session.pipeline.plan import Plan
from sessiond.session.pipeline.step_log import Telling
from sessiond.session.pipeline.step_reports import Observer
from sessiond.session.state import LeaseTime, Standing, conversation_of


class Acts:
    """One session's."""

    def __init__(
        self, standing: Standing, link: AgentLink, turns: TurnBook, desk: Desk, lease_time: LeaseTime,
        observer: Observer, telling: Telling,
    ) -> None:  # fmt: skip
        self._standing, self._link, self._turns, self._desk = standing, link, turns, desk
        self._lease_time, self._observer, self._telling = lease_time, observer, telling
        self.cause = time.monotonic()
        """When what the present step answers to came in."""

    def act(self, plan: Plan) -> None:
        """Writes first, tells next: an interrupt waits for nobody."""
        for output in plan.outputs:
            match output:
                case st.Write(what=what, data=data):
                    self._write(what, data)
                case st.Launch(resume=resume):
                    self._link.start(plan.agent.conversation, resume)
                case st.Kill(hard=hard):
                    self._link.kill() if hard else self._link.end()
                case st.Acked():
                    turn = plan.agent.turn
                    self._turns.acked(turn is not None and turn.result is not None)
        for effect in plan.effects:
            match effect:
                case ev.Granted(ticket=ticket):
                    self._desk.tell(ticket, self._granted(ticket))
                case ev.TicketOver(ticket=ticket, reason=reason):
                    self._standing.taken.pop(ticket, None)
                    self._desk.refuse(ticket, ended(reason.value))
                case ev.Displaced(ticket=ticket):
                    self._desk.refuse(ticket, superseded())
        self._turns.publish()
        self._observer.step(plan, self.cause)
        self._telling.step(plan)

    def _write(self, what: str, data: bytes) -> None:
        turn = self._standing.agent.turn
        if what == "interrupt" and turn is not None and turn.written:  # else it is for a turn of claude's own
            self._turns.interrupted(self.cause)
        self._link.write(data)

    def _granted(self, ticket: str) -> dict[str, Any]:
        lease, extras = self._standing.lock.lease, self._standing.extras
        if lease is None or extras is None or lease.ticket != ticket:
            raise ev.InvariantBroken("one_holder_per_lease", f"{ticket} was granted and has no lease")
        body = {
            "fence": lease.fence, "secret": extras.secret, "expires_at": self._lease_time.expires_at(),
            "conversation": conversation_of(self._standing.agent),
        }  # fmt: skip
        return {"state": "granted", "lease": body}
