"""While Redis is away: who is told, what goes on, when the agent is ended."""

import time
from dataclasses import replace

import structlog

from sessiond.lock.rules import Presence
from sessiond.problems import away
from sessiond.session.agent.link import AgentLink
from sessiond.session.callers.waiters import Desk
from sessiond.session.inbox import Answered, Inbox
from sessiond.session.pipeline.commits import Commits
from sessiond.session.pipeline.plan import Plan
from sessiond.session.state import Standing

log = structlog.get_logger("sessiond.outages")


class Outages:
    """One session's. `wait` runs in the owner loop and holds it."""

    def __init__(
        self, name: str, inbox: Inbox, desk: Desk, commits: Commits, link: AgentLink, owner_doubt: float
    ) -> None:
        self._name, self._inbox, self._desk = name, inbox, desk
        self._commits, self._link, self._doubt = commits, link, owner_doubt

    def wait(self) -> None:
        """Everybody who waits is told at once; places and leases stand, the agent goes on. Returns when it is over.

        Raises Answered when the session is to stop meanwhile.
        """
        began = time.monotonic()
        self._inbox.away = True
        log.warning("Redis is away", session=self._name)
        self._desk.refuse_all(away())
        try:
            self._commits.wait(self._meanwhile)
        finally:
            self._inbox.away = False
        log.warning("Redis is back", session=self._name, seconds=round(time.monotonic() - began, 1))

    def _meanwhile(self) -> None:
        """An owner that could not renew for `owner_doubt` ends its agent: another may own the session by now."""
        self._inbox.refuse_calls(away())
        if self._inbox.closed is not None:
            raise Answered
        if self._commits.unsure > self._doubt and self._link.alive:
            log.error("owner in doubt: the agent is ended", session=self._name)
            self._link.end("owner-doubt")

    def absences(self, now: Standing) -> Plan:
        """The step after an outage: nobody who was told so is present any more, and nobody is passed over."""
        told = [t for t in now.lock.tickets.values() if (t.present or t.passed) and not self._desk.has(t.id)]
        tickets = {t.id: replace(t, presence=Presence.ABSENT, passed=False) for t in told}
        lock = replace(now.lock, tickets={**now.lock.tickets, **tickets}) if tickets else now.lock
        return Plan(lock, now.agent, [("absent", {"ticket": t.id}) for t in told])
