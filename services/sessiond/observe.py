"""From committed steps to metrics. Reads what a step did; decides nothing."""

import time

from sessiond import metrics
from sessiond.agent import state as st
from sessiond.composition import Plan
from sessiond.lock.rules import Kind, LeaseEnd
from sessiond.lock.state import Lock


class Observer:
    """One session's view into the metrics: since when who waits, and who held last."""

    def __init__(self, session: str) -> None:
        self._session = session
        self._since: dict[str, float] = {}
        self._held: dict[int, float] = {}
        self._told: dict[str, float] = {}
        self._last_kind = "nobody"

    def step(self, plan: Plan) -> None:
        """Counts one committed step."""
        now = time.monotonic()
        for event, data in plan.ledger:
            if event == "taken":
                self._since[data["ticket"]] = now
            elif event == "ticket-ended":
                self._since.pop(data["ticket"], None)
            elif event == "granted":
                self._granted(data, now)
            elif event == "ended":
                self._ended(data, now)
        for output in plan.outputs:
            if isinstance(output, st.TurnOver):
                metrics.TURNS.labels(outcome=output.outcome.value).inc()
            elif isinstance(output, st.Note) and output.event == "recovery":
                metrics.RECOVERIES.labels(reason=str(output.data["reason"])).inc()
        if plan.ledger:
            for kind in Kind:
                waiting = sum(t.kind is kind for t in plan.lock.queue)
                metrics.QUEUE.labels(session=self._session, kind=kind.value).set(waiting)

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

    def _granted(self, data: dict[str, object], now: float) -> None:
        kind = str(data["kind"])
        since = self._since.get(str(data["ticket"]), now)
        metrics.LOCK_WAIT.labels(kind=kind).observe(now - since)
        metrics.HANDOFFS.labels(from_kind=self._last_kind, to_kind=kind).inc()
        self._held[int(str(data["fence"]))] = now
        self._last_kind = kind

    def _ended(self, data: dict[str, object], now: float) -> None:
        kind, reason = str(data["kind"]), str(data["reason"])
        begun = self._held.pop(int(str(data["fence"])), None)
        if begun is not None:
            metrics.HOLD.labels(kind=kind).observe(now - begun)
        metrics.LEASES_ENDED.labels(reason=reason).inc()
        if reason == LeaseEnd.PREEMPTED.value:
            metrics.PREEMPTIONS.inc()
        self._since[str(data["ticket"])] = now
