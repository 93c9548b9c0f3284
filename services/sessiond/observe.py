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
        self._last_kind = "nobody"

    def step(self, lock: Lock, plan: Plan) -> None:
        """Counts one committed step. `lock` is the state after it."""
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
                waiting = sum(t.kind is kind for t in lock.queue)
                metrics.QUEUE.labels(session=self._session, kind=kind.value).set(waiting)

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
