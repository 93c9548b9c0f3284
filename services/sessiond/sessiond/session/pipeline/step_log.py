"""From committed steps to log lines: one an event, by whose ticket, key and fence a comment can be followed.

Reads what a step did; decides nothing. Only what stands in the table is told: no prompt, no answer, nobody's words.
"""

from collections.abc import Mapping
from typing import Any, Final

import structlog

from sessiond.lock.state import Lock
from sessiond.session.pipeline.plan import Plan

TELLS: Final[Mapping[str, tuple[str, ...]]] = {
    "taken": ("kind", "priority"),
    "superseded": ("holder", "by"),
    "passed-over": (),
    "lapsed": (),
    "granted": ("kind", "holder", "skipped"),
    "ended": ("kind", "reason"),
    "back": (),
    "ticket-ended": ("reason",),
    "draining": ("why",),
    "drained": ("how",),
    "turn-accepted": ("turn", "attempt"),
    "turn-started": ("turn",),
    "interrupt": ("turn", "why"),
    "turn-closed": ("turn", "outcome", "ticket_to_interrupt_ms", "interrupt_to_ack_ms", "interrupt_to_closed_ms"),
    "force-release": ("by",),
    "agent-starting": ("resume",),
    "agent-started": (),
    "agent-stopping": ("why",),
    "agent-killed": ("why",),
    "agent-reaped": ("exit", "why"),
    "agent-broken": ("rest_seconds",),
    "agent-restart": ("by",),
    "recovery": ("reason",),
    "conversation": ("generation",),
    "denied": ("tool",),
    "fault": ("what",),
}
"""What is said of which of the ledger's events, besides ticket, key and fence."""


class Telling:
    """One session's."""

    def __init__(self, name: str) -> None:
        self._log = structlog.get_logger("sessiond.step").bind(session=name)
        self._before = Lock()

    def step(self, plan: Plan) -> None:
        """Tells one committed step."""
        for event, data in plan.ledger:
            if event in TELLS:
                said = {name: data[name] for name in TELLS[event] if data.get(name) not in (None, [])}
                self._log.info(event, **self._whose(plan.lock, data), **said)
        self._before = plan.lock

    def _whose(self, after: Lock, data: Mapping[str, Any]) -> dict[str, Any]:
        """The ticket, its key and the lease's fence, as far as the entry, or the lock around it, has them.

        An entry without either is the agent's, and so of the lease, or the drain, that the agent is at.
        """
        ticket, fence = data.get("ticket"), data.get("fence")
        for one in (self._before.drain, self._before.lease, after.lease, after.drain):
            if one is not None and ticket in (None, one.ticket) and fence in (None, one.fence):
                ticket, fence = one.ticket, one.fence
        known = after.tickets.get(ticket or "") or self._before.tickets.get(ticket or "")
        found = {"ticket": ticket, "key": known.key if known else None, "fence": fence}
        return {name: value for name, value in found.items() if value is not None}
