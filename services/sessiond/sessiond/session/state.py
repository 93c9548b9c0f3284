"""The state of a session as of its last committed step."""

import hmac
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from sessiond.agent import state as st
from sessiond.lock import events as ev
from sessiond.lock.state import Lease, Lock
from sessiond.session.timers import SessionTimer, Timers
from sessiond.store import codec
from sessiond_common.clock import now_text


@dataclass(slots=True)
class SessionState:
    """The states of both machines, and what is stored beside them. Only a committed step changes it."""

    lock: Lock = field(default_factory=Lock)
    agent: st.Agent = field(default_factory=lambda: st.Agent(conversation=str(uuid.uuid4())))
    lease_extras: codec.LeaseExtras | None = None
    """The current lease's secret and times."""
    taken: dict[str, str] = field(default_factory=dict)
    """When each ticket was taken, RFC 3339, by ticket id."""
    idle_since: float = field(default_factory=time.monotonic)

    def lease_of(self, secret: str) -> Lease | None:
        """Return the current lease if it has this secret."""
        if self.lock.lease is None or self.lease_extras is None:
            return None
        return self.lock.lease if hmac.compare_digest(self.lease_extras.secret.encode(), secret.encode()) else None

    def idle_seconds(self) -> float | None:
        """Return the seconds for which the agent has been idle; None while it is needed."""
        idle = self.agent.phase is st.Phase.IDLE and self.agent.turn is None and not self.agent.busy
        return time.monotonic() - self.idle_since if idle else None


def conversation_of(agent: st.Agent) -> dict[str, Any]:
    """Return `{id, generation, fresh}`, which every lease and every result has."""
    return {"id": agent.conversation, "generation": agent.generation, "fresh": not agent.known}


class LeaseTime:
    """The time that the current lease has left."""

    def __init__(self, state: SessionState, timers: Timers[SessionTimer]) -> None:
        self._state, self._timers = state, timers

    def expires_at(self) -> str | None:
        """Return when the lease ends if its holder does not renew it, RFC 3339. No rule reads this time."""
        lease = self._state.lock.lease
        if lease is None:
            return None
        return now_text(self._timers.left(_timer("lease" if lease.claimed else "claim", lease)) or 0.0)

    def renewed(self) -> None:
        """Record that the lease was renewed for its full ttl."""
        if lease := self._state.lock.lease:
            self._timers.renew(_timer("lease", lease))

    def hold_left(self) -> float | None:
        """Return the seconds of `max_hold` left at the loop's last check; None for a worker's lease or no lease."""
        lease = self._state.lock.lease
        return self._timers.left(_timer("hold", lease), self._timers.checked_at) if lease else None

    def restart(self, hold_left: float | None) -> None:
        """Give every timer its full time again; `max_hold` gets these seconds (None: its full time too)."""
        lease = self._state.lock.lease
        kept = {_timer("hold", lease): hold_left} if lease and hold_left is not None else {}
        self._timers.restart(keep=kept)


def _timer(name: str, lease: Lease) -> SessionTimer:
    return "lock", ev.Timer(name, str(lease.fence))
