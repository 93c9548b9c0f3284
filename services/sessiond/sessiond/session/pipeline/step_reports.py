"""From committed steps to metrics. Reads what a step did; decides nothing."""

import time
from typing import Any

from sessiond import metrics
from sessiond.agent import state as st
from sessiond.lock.rules import Kind, LeaseEnd
from sessiond.lock.state import Lock
from sessiond.session.pipeline.plan import Plan


class Observer:
    """One session's view into the metrics: since when who waits, and who held last."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._held: dict[int, float] = {}
        self._told: dict[str, float] = {}
        self._last_kind = metrics.NOBODY
        self._preempted: tuple[int, float] | None = None
        """The fence that was preempted last, and when the ticket that did it came in; until the next grant."""

    def step(self, plan: Plan, cause: float) -> None:
        """Counts one committed step. `cause` is when what it answers to came in."""
        now = time.monotonic()
        for event, data in plan.ledger:
            if event == "taken":
                self._since[data["ticket"]] = now
            elif event == "ticket-ended":
                self._since.pop(data["ticket"], None)
            elif event == "granted":
                self._granted(data, now)
            elif event == "ended":
                self._ended(data, now, cause)
            elif event == "turn-closed":
                self._turn_closed(data)
            elif event == "passed-over":
                metrics.PASSED_OVER.labels(plan.lock.tickets[data["ticket"]].kind.value).inc()
            elif event == "lapsed":
                metrics.LAPSED.inc()
            elif event == "drained":
                metrics.DRAINS.labels(data["how"]).inc()
            elif event == "recovery":
                metrics.RECOVERIES.labels(data["reason"]).inc()
        for output in plan.outputs:
            if isinstance(output, st.TurnOver):
                _used(output)

    def oldest_waits(self, lock: Lock) -> dict[Kind, float]:
        """By kind: for how many seconds the one who waited longest has waited."""
        now, found = time.monotonic(), dict.fromkeys(Kind, 0.0)
        for ticket in lock.queue:
            if ticket.present:
                found[ticket.kind] = max(found[ticket.kind], now - self._since.get(ticket.id, now))
        return found

    def long_waits(self, lock: Lock, seconds: float) -> list[tuple[str, float]]:
        """Tickets that somebody waits on for `seconds` and more, each told again as often: (id, seconds so far)."""
        now, found = time.monotonic(), []
        for ticket in lock.queue:
            # A ticket that was there before this owner counts from its first look.
            since = self._since.setdefault(ticket.id, now)
            if ticket.present and now - max(since, self._told.get(ticket.id, 0.0)) >= seconds:
                self._told[ticket.id] = now
                found.append((ticket.id, now - since))
        self._told = {t: at for t, at in self._told.items() if t in lock.tickets}
        return found

    def _granted(self, data: dict[str, Any], now: float) -> None:
        kind = data["kind"]
        metrics.LOCK_WAIT.labels(kind).observe(now - self._since.get(data["ticket"], now))
        metrics.HANDOFFS.labels(self._last_kind, kind).inc()
        self._held[data["fence"]] = now
        self._last_kind = kind
        if self._preempted is not None:
            metrics.PREEMPTION.labels("grant").observe(now - self._preempted[1])
            self._preempted = None

    def _ended(self, data: dict[str, Any], now: float, cause: float) -> None:
        kind, reason, fence = data["kind"], data["reason"], data["fence"]
        begun = self._held.pop(fence, None)
        if begun is not None:
            metrics.HOLD.labels(kind).observe(now - begun)
        metrics.LEASES_ENDED.labels(kind, reason).inc()
        if reason == LeaseEnd.PREEMPTED.value:
            metrics.PREEMPTIONS.inc()
            self._preempted = (fence, cause)
        self._since[data["ticket"]] = now

    def _turn_closed(self, data: dict[str, Any]) -> None:
        metrics.TURNS.labels(data["kind"], data["outcome"]).inc()
        # Also in the step that grants to the next: a turn's end is told before the grant that waited for it.
        if self._preempted is None or self._preempted[0] != data["fence"]:
            return
        begun = data.get("ticket_to_interrupt_ms")
        if begun is not None:
            metrics.PREEMPTION.labels("interrupt").observe(begun / 1000)
            for phase in ("ack", "closed"):
                if (more := data.get(f"interrupt_to_{phase}_ms")) is not None:
                    metrics.PREEMPTION.labels(phase).observe((begun + more) / 1000)


def _used(end: st.TurnOver) -> None:
    for name, label in metrics.TOKENS.items():
        number = end.usage.get(name)
        if isinstance(number, int) and number > 0:
            metrics.TOKENS_USED.labels(label).inc(number)
    if end.cost_usd:
        metrics.COST.inc(end.cost_usd)
