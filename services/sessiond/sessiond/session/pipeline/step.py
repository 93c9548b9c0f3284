"""The value that the stages of a step hand on, from its decision to its report."""

import time
from dataclasses import dataclass, field

from sessiond.session.callers.waiters import Waiter
from sessiond.session.pipeline.plan import Plan
from sessiond.store.codec import LeaseExtras, RedisCommand


@dataclass(slots=True)
class Step:
    """One step of a session. Each stage fills in its part."""

    plan: Plan
    """What the machines decided. Later stages add ledger entries."""
    cause: float = field(default_factory=time.monotonic)
    """When the item came in that the step answers, in monotonic seconds."""
    commands: list[RedisCommand] = field(default_factory=list)
    """What the step writes: first what its handler stores, then what persistence adds."""
    waiter: Waiter | None = None
    """The waiter to register once the step is committed."""
    begins_epoch: bool = False
    """The step takes over the stored state."""
    lease_extras: LeaseExtras | None = field(default=None, init=False)
    """The secret and times of the lease that lives after the step (set by persistence)."""
    grant: tuple[str, frozenset[str]] | None = field(default=None, init=False)
    """The ticket that the step grants, and the tickets that it skips (set by persistence)."""
