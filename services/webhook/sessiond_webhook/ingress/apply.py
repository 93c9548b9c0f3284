"""Applies intents: stores everything that must be durable, then takes or withdraws tickets, best effort."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import redis
import structlog

from sessiond_webhook.deliveries import intents
from sessiond_webhook.demands.machine import UNANSWERED, Demand
from sessiond_webhook.demands.store import Demands, StoredDelivery
from sessiond_webhook.demands.tickets import Tickets
from sessiond_webhook.ingress import metrics
from sessiond_webhook.ingress.worker_tasks import TaskPort

log = structlog.get_logger("webhook.delivering")

EARLIER_SECONDS: Final = 2.0
"""Seconds that a delivery spends on the tickets of earlier ones. GitHub ends a delivery after 10 s."""


@dataclass(frozen=True, slots=True)
class DeliveryOutcome:
    """The result of a delivery. `name` is one word. The tickets of the `withdrawn` demands must be withdrawn."""

    name: str
    demand: Demand | None = None
    withdrawn: tuple[Demand, ...] = ()
    task: str | None = None


class DeliveryProcessor:
    """Applies intents. Safe to share between greenlets and threads."""

    def __init__(self, demands: Demands, tickets: Tickets, tasks: TaskPort) -> None:
        self._demands, self._tickets, self._tasks = demands, tickets, tasks

    def commit(self, delivery: str, intent: intents.Intent) -> DeliveryOutcome:
        """Store what the intent changes. It is durable when this returns.

        Raises:
            redis.RedisError: nothing is certain to be stored. An error of the task port means the same.
        """
        match intent:
            case intents.Demanded(comment):
                # A stuck task goes on after the next comment in its thread. Waking it twice is harmless.
                if not self._demands.delivered(delivery):
                    self._tasks.wake(comment.session, comment.number)
                return _outcome(self._demands.accept(delivery, comment))
            case intents.RefusedDemand(comment, reason):
                return _outcome(self._demands.accept(delivery, comment, refuse=reason))
            case intents.Edited(comment):
                return _outcome(self._demands.edit(delivery, comment))
            case intents.Deleted(key):
                return _outcome(self._demands.delete(delivery, key))
            case intents.PullClosed(session, number, at):
                return _outcome(self._demands.close(delivery, session, number, at))
            case intents.TaskWanted():
                return self._apply_once(delivery, "task", lambda: self._tasks.add_task(intent))
            case intents.Woken(session, number):
                return self._apply_once(delivery, "woken", lambda: self._tasks.wake(session, number))
        raise ValueError(f"nothing can be done for {intent}")

    def _apply_once(self, delivery: str, name: str, act: Callable[[], str | int]) -> DeliveryOutcome:
        """Change another store, then record the delivery. If that fails, `act` runs again later, which is safe."""
        if self._demands.delivered(delivery):
            return DeliveryOutcome("duplicate")
        done = act()
        self._demands.note_delivery(delivery, name)
        return DeliveryOutcome(name, task=done if isinstance(done, str) and done else None)

    def tickets(self, outcome: DeliveryOutcome) -> DeliveryOutcome:
        """Take or withdraw the tickets that the outcome needs, best effort. Errors of sessiond are not raised."""
        for demand in outcome.withdrawn:
            metrics.TICKETS.labels(outcome="withdrawn" if self._tickets.withdraw(demand) else "not-withdrawn").inc()
        try:
            return self._take_ticket(outcome)
        except redis.RedisError as error:  # the delivery is stored already
            log.warning("cannot reach Redis to take a ticket; the sweeper tries again", error=repr(error))
            return outcome

    def _take_ticket(self, outcome: DeliveryOutcome) -> DeliveryOutcome:
        demand = outcome.demand
        if demand is None or demand.ticket is not None or demand.state not in UNANSWERED:
            return outcome
        # Tickets follow the order of the comments, even if another process has not taken an earlier one yet.
        deadline = time.monotonic() + EARLIER_SECONDS
        for earlier in self._demands.without_ticket_before(demand):
            if time.monotonic() < deadline:
                self._tickets.take(earlier)
        taken = self._tickets.take(demand)
        metrics.TICKETS.labels(outcome="taken" if taken is not None else "missing").inc()
        return outcome if taken is None else replace(outcome, demand=taken)


def _outcome(stored: StoredDelivery) -> DeliveryOutcome:
    return DeliveryOutcome(stored.outcome, stored.demand, stored.withdrawn)
