"""The report stage: from committed steps to metrics and log lines. It reads what a step did and decides nothing."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog

from sessiond import metrics
from sessiond.agent import state as st
from sessiond.lock.rules import Kind, LeaseEnd
from sessiond.lock.state import Lock
from sessiond.session.pipeline.plan import Plan
from sessiond.session.pipeline.step import Step

LOGGED: Final[Mapping[str, tuple[str, ...]]] = {
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
"""The ledger events that are logged, and their fields besides ticket, key and fence.

Only these fields are logged: no prompt, no answer, no other text of a person or a model.
"""


class StepMetrics:
    """Counts one session's steps. It stores since when each ticket waits, and which kind held the lease last."""

    def __init__(self) -> None:
        self._waits_since: dict[str, float] = {}
        self._granted_at: dict[int, float] = {}
        self._logged_at: dict[str, float] = {}
        self._last_kind = metrics.NOBODY
        self._preempted: tuple[int, float] | None = None
        """The fence that was preempted last, and when the preempting ticket arrived. Reset by the next grant."""

    def count(self, step: Step) -> None:
        """Count one committed step."""
        for event, data in step.plan.ledger:
            if counter := _COUNTERS.get(event):
                counter(self, data, step)
        for output in step.plan.outputs:
            if isinstance(output, st.TurnOver):
                _count_usage(output)

    def oldest_waits(self, lock: Lock) -> dict[Kind, float]:
        """Return by kind the seconds of the longest wait that goes on."""
        now, found = time.monotonic(), dict.fromkeys(Kind, 0.0)
        for ticket in lock.queue:
            if ticket.present:
                found[ticket.kind] = max(found[ticket.kind], now - self._waits_since.get(ticket.id, now))
        return found

    def long_waits(self, lock: Lock, seconds: float) -> list[tuple[str, float]]:
        """Return the tickets with a wait of `seconds` or more: (id, seconds so far).

        Each is returned again after the same time.
        """
        now, found = time.monotonic(), []
        for ticket in lock.queue:
            # A ticket that is older than this owner counts from the first time it is seen here.
            since = self._waits_since.setdefault(ticket.id, now)
            if ticket.present and now - max(since, self._logged_at.get(ticket.id, 0.0)) >= seconds:
                self._logged_at[ticket.id] = now
                found.append((ticket.id, now - since))
        self._logged_at = {t: at for t, at in self._logged_at.items() if t in lock.tickets}
        return found

    def _taken(self, data: dict[str, Any], step: Step) -> None:
        self._waits_since[data["ticket"]] = time.monotonic()

    def _ticket_ended(self, data: dict[str, Any], step: Step) -> None:
        self._waits_since.pop(data["ticket"], None)

    def _granted(self, data: dict[str, Any], step: Step) -> None:
        now, kind = time.monotonic(), data["kind"]
        metrics.LOCK_WAIT.labels(kind).observe(now - self._waits_since.get(data["ticket"], now))
        metrics.HANDOFFS.labels(self._last_kind, kind).inc()
        self._granted_at[data["fence"]] = now
        self._last_kind = kind
        if self._preempted is not None:
            metrics.PREEMPTION.labels("grant").observe(now - self._preempted[1])
            self._preempted = None

    def _lease_ended(self, data: dict[str, Any], step: Step) -> None:
        now, kind, reason, fence = time.monotonic(), data["kind"], data["reason"], data["fence"]
        granted_at = self._granted_at.pop(fence, None)
        if granted_at is not None:
            metrics.HOLD.labels(kind).observe(now - granted_at)
        metrics.LEASES_ENDED.labels(kind, reason).inc()
        if reason == LeaseEnd.PREEMPTED.value:
            metrics.PREEMPTIONS.inc()
            self._preempted = (fence, step.cause)
        self._waits_since[data["ticket"]] = now

    def _turn_closed(self, data: dict[str, Any], step: Step) -> None:
        metrics.TURNS.labels(data["kind"], data["outcome"]).inc()
        # The ledger names a turn's end before the grant that waited for it, also within one step.
        if self._preempted is None or self._preempted[0] != data["fence"]:
            return
        interrupted = data.get("ticket_to_interrupt_ms")
        if interrupted is not None:
            metrics.PREEMPTION.labels("interrupt").observe(interrupted / 1000)
            for phase in ("ack", "closed"):
                if (more := data.get(f"interrupt_to_{phase}_ms")) is not None:
                    metrics.PREEMPTION.labels(phase).observe((interrupted + more) / 1000)

    def _passed_over(self, data: dict[str, Any], step: Step) -> None:
        metrics.PASSED_OVER.labels(step.plan.lock.tickets[data["ticket"]].kind.value).inc()

    def _lapsed(self, data: dict[str, Any], step: Step) -> None:
        metrics.LAPSED.inc()

    def _drained(self, data: dict[str, Any], step: Step) -> None:
        metrics.DRAINS.labels(data["how"]).inc()

    def _recovery(self, data: dict[str, Any], step: Step) -> None:
        metrics.RECOVERIES.labels(data["reason"]).inc()


_COUNTERS: Final[Mapping[str, Callable[[StepMetrics, dict[str, Any], Step], None]]] = {
    "taken": StepMetrics._taken,
    "ticket-ended": StepMetrics._ticket_ended,
    "granted": StepMetrics._granted,
    "ended": StepMetrics._lease_ended,
    "turn-closed": StepMetrics._turn_closed,
    "passed-over": StepMetrics._passed_over,
    "lapsed": StepMetrics._lapsed,
    "drained": StepMetrics._drained,
    "recovery": StepMetrics._recovery,
}


def _count_usage(end: st.TurnOver) -> None:
    for name, label in metrics.TOKENS.items():
        number = end.usage.get(name)
        if isinstance(number, int) and number > 0:
            metrics.TOKENS_USED.labels(label).inc(number)
    if end.cost_usd:
        metrics.COST.inc(end.cost_usd)


class StepLog:
    """Logs one session's steps: one line per event, with ticket, key and fence to filter by."""

    def __init__(self, name: str) -> None:
        self._log = structlog.get_logger("sessiond.step").bind(session=name)
        self._before = Lock()

    def write(self, plan: Plan) -> None:
        """Log one committed step."""
        for event, data in plan.ledger:
            if event in LOGGED:
                fields = {name: data[name] for name in LOGGED[event] if data.get(name) not in (None, [])}
                self._log.info(event, **self._subject(plan.lock, data), **fields)
        self._before = plan.lock

    def _subject(self, after: Lock, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the ticket, its key and the lease's fence, as far as the entry or the lock around it has them.

        An entry without any of them comes from the agent, so it belongs to the agent's current lease or drain.
        """
        ticket, fence = data.get("ticket"), data.get("fence")
        for one in (self._before.drain, self._before.lease, after.lease, after.drain):
            if one is not None and ticket in (None, one.ticket) and fence in (None, one.fence):
                ticket, fence = one.ticket, one.fence
        known = after.tickets.get(ticket or "") or self._before.tickets.get(ticket or "")
        found = {"ticket": ticket, "key": known.key if known else None, "fence": fence}
        return {name: value for name, value in found.items() if value is not None}
