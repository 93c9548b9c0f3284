"""The value that the stages of a step pass on, from its decision to its report."""

import time
from dataclasses import dataclass, field

from sessiond.session.callers.waiters import Waiter
from sessiond.session.pipeline.plan import Plan
from sessiond.store.codec import LeaseExtras, RedisCommand


@dataclass(slots=True)
class Step:
    """One step of a session. Each stage fills in its part."""

    plan: Plan
    """The decision of the machines. Later stages add ledger entries."""
    cause: float = field(default_factory=time.monotonic)
    """When the item that the step answers arrived, in monotonic seconds."""
    commands: list[RedisCommand] = field(default_factory=list)
    """The commands that the step writes: those of its handler first, then those of persistence."""
    waiter: Waiter | None = None
    """The waiter to register once the step is committed."""
    begins_epoch: bool = False
    """The step takes over the stored state."""
    lease_extras: LeaseExtras | None = field(default=None, init=False)
    """The secret and times of the lease that is held after the step (set by persistence)."""
    grant: tuple[str, frozenset[str]] | None = field(default=None, init=False)
    """The ticket that the step grants, and the tickets that it skips (set by persistence)."""
