"""What HTTP may see of a session. Nothing here changes anything.

Views read the loop's state as it stands between two steps. All methods raise problems.Problem.
"""

import time
from collections.abc import Callable
from typing import Any, Final, NoReturn

import gevent

from sessiond.agent.state import Phase
from sessiond.problems import away, no_ticket, no_turn
from sessiond.session import views
from sessiond.session.loop import Session
from sessiond.session.state import conversation_of
from sessiond.store.store import Away

UNSEEN_POLL: Final = 0.5


class SessionLook:
    """The reading half of an owned session's HTTP table."""

    def __init__(self, session: Session) -> None:
        self._s = session
        self.name = session.name

    def view(self) -> dict[str, Any]:
        """Holder, queue in order with why, the agent's state."""
        s = self._s
        lock, agent = s.standing.lock, s.standing.agent
        return {
            "session": s.name,
            "epoch": s.commits.epoch,
            "version": s.commits.version,
            "owner": {"instance": s.settings.instance, "url": s.settings.url},
            "holder": views.holder_view(lock, s.lease_time.expires_at()),
            "draining": lock.drain and {"fence": lock.drain.fence, "why": lock.drain.why.value},
            "queue": self._queue(),
            "turn": lock.turn,
            "agent": {
                "state": agent.phase.value, "why": agent.why or None, "tasks": sorted(agent.tasks),
                "pid": (s.link.guard or {}).get("agent_pid"), "conversation": conversation_of(agent),
            },
        }  # fmt: skip

    def ticket(self, ticket: str) -> dict[str, Any]:
        """One ticket."""
        self._s.waits.living(ticket)
        return self._view(ticket)

    def _queue(self) -> list[dict[str, Any]]:
        now = self._s.standing
        queued = views.Queued(now.lock)
        return [queued.view(ticket, now.taken.get(ticket.id, "")) for ticket in queued.tickets]

    def _view(self, ticket: str) -> dict[str, Any]:
        now = self._s.standing
        return views.Queued(now.lock).view(now.lock.tickets[ticket], now.taken.get(ticket, ""))

    def turn(self, turn: str) -> dict[str, Any]:
        """What became of a turn."""
        return _turn_view(self._s.turns.find(turn))

    def turn_by_key(self, key: str) -> dict[str, Any]:
        """The last attempt under this key."""
        return _turn_view(self._s.turns.find_key(key))

    def ledger_after(self, after: str | None, count: int) -> list[dict[str, Any]]:
        """At most `count` entries behind the id `after` (None: from the first)."""
        try:
            return self._s.store.ledger(after, count)
        except Away as error:
            raise away() from error

    def wait_ledger(self, after: str | None, seconds: float) -> list[dict[str, Any]]:
        """The same, waiting at most `seconds` for the first."""
        try:
            return self._s.store.ledger_wait(after, int(seconds * 1000))
        except Away as error:
            raise away() from error

    def ledger_before(self, before: str | None, count: int) -> list[dict[str, Any]]:
        """At most `count` entries before the id `before` (None: from the last), the newest first."""
        try:
            return self._s.store.ledger_before(before, count)
        except Away as error:
            raise away() from error

    # ---- the board ---------------------------------------------------------------------------

    def moment(self) -> tuple[object, ...]:
        """The values that the board shows; another moment has others in their place."""
        now = self._s.standing
        return now.lock, now.agent, now.extras

    def keys(self) -> dict[str, str | None]:
        """The living tickets' keys."""
        return {t.id: t.key for t in self._s.standing.lock.tickets.values()}

    def row(self) -> dict[str, Any]:
        """The session in one line of the board."""
        now = self._s.standing
        return views.board_row(self.name, now.lock, self._since(), now.agent.phase.value)

    def detail(self) -> dict[str, Any]:
        """Who holds since when, who waits and why, the agent's state."""
        now = self._s.standing
        agent = {
            "state": now.agent.phase.value, "why": now.agent.why or None, "tasks": len(now.agent.tasks),
            "conversation": conversation_of(now.agent),
        }  # fmt: skip
        return {"session": self.name, **views.board_lock(now.lock, self._since(), now.taken), "agent": agent}

    def _since(self) -> str | None:
        extras = self._s.standing.extras
        return extras.granted_at or None if extras else None


class Unseen:
    """A session on which nobody has taken a ticket yet: looking at it does not make it."""

    def __init__(self, name: str, seen: Callable[[], SessionLook | None]) -> None:
        self.name = name
        self._seen = seen

    def view(self) -> dict[str, Any]:
        """The view of nothing: epoch and version 0, no owner, nobody waits."""
        agent: dict[str, Any] = {"state": Phase.ASLEEP.value, "why": None, "tasks": []}
        return {
            "session": self.name, "epoch": 0, "version": 0, "owner": None, "holder": None, "draining": None,
            "queue": [], "turn": None, "agent": {**agent, "pid": None, "conversation": None},
        }  # fmt: skip

    def ticket(self, ticket: str) -> NoReturn:
        """There is none."""
        raise no_ticket()

    def turn(self, turn: str) -> NoReturn:
        """There is none."""
        raise no_turn()

    def turn_by_key(self, key: str) -> NoReturn:
        """There is none."""
        raise no_turn()

    def ledger_after(self, after: str | None, count: int) -> list[dict[str, Any]]:
        """There are none."""
        return []

    def wait_ledger(self, after: str | None, seconds: float) -> list[dict[str, Any]]:
        """Waits at most `seconds` for somebody to take the first ticket, then for the first entry."""
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            if found := self._seen():
                return found.wait_ledger(after, left)
            gevent.sleep(min(UNSEEN_POLL, left))
        return []


def _turn_view(found: dict[str, Any] | None) -> dict[str, Any]:
    if found is None:
        raise no_turn()
    return views.turn_view(found)
