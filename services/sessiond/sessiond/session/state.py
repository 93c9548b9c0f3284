"""What the owner of a session knows, as of its last committed step."""

import hmac
import time
import uuid
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from sessiond.agent import state as st
from sessiond.lock import events as ev
from sessiond.lock.state import Lease, Lock
from sessiond.session.timers import Deadlines
from sessiond.store import codec
from sessiond_common.clock import now_text


@dataclass(slots=True)
class Standing:
    """Both machines' states and what is stored beside them. Only a committed step changes it."""

    lock: Lock = field(default_factory=Lock)
    agent: st.Agent = field(default_factory=lambda: st.Agent(conversation=str(uuid.uuid4())))
    extras: codec.LeaseExtras | None = None
    """The living lease's secret and times."""
    taken: dict[str, str] = field(default_factory=dict)
    """When each ticket was taken, RFC 3339."""
    idle_since: float = field(default_factory=time.monotonic)

    def lease_of(self, secret: str) -> Lease | None:
        """The living lease, if that is its secret."""
        if self.lock.lease is None or self.extras is None:
            return None
        return self.lock.lease if hmac.compare_digest(self.extras.secret.encode(), secret.encode()) else None

    def idle_seconds(self) -> float | None:
        """Seconds for which the agent has been idle; None while it is needed."""
        idle = self.agent.phase is st.Phase.IDLE and self.agent.turn is None and not self.agent.busy
        return time.monotonic() - self.idle_since if idle else None


def conversation_of(agent: st.Agent) -> dict[str, Any]:
    """`{id, generation, fresh}`, as every lease and result has it."""
    return {"id": agent.conversation, "generation": agent.generation, "fresh": not agent.known}


class LeaseTime:
    """How long the living lease still has."""

    def __init__(self, standing: Standing, deadlines: Deadlines) -> None:
        self._standing, self._deadlines = standing, deadlines

    def expires_at(self) -> str | None:
        """When the lease ends if nobody renews it, RFC 3339; for show."""
        lease = self._standing.lock.lease
        if lease is None:
            return None
        return now_text(self._deadlines.left(_timer("lease" if lease.claimed else "claim", lease)) or 0.0)

    def renewed(self) -> None:
        """The lease has its full ttl again."""
        if lease := self._standing.lock.lease:
            self._deadlines.renew(_timer("lease", lease))

    def hold_left(self) -> float | None:
        """Seconds of `max_hold` left, as the loop saw it last; None for a worker's lease, and without one."""
        lease = self._standing.lock.lease
        return self._deadlines.left(_timer("hold", lease), self._deadlines.seen) if lease else None

    def restart(self, hold_left: float | None) -> None:
        """Every deadline has its full time again, but for `max_hold`, which has these seconds (None: its full time)."""
        lease = self._standing.lock.lease
        kept: dict[Hashable, float] = {_timer("hold", lease): hold_left} if lease and hold_left is not None else {}
        self._deadlines.restart(keep=kept)


def _timer(name: str, lease: Lease) -> tuple[str, ev.Timer]:
    return "lock", ev.Timer(name, str(lease.fence))
