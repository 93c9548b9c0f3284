"""What an intent changes: first everything that must be durable, then, best effort, the tickets."""

import time
from dataclasses import dataclass, replace
from typing import Any, Final

import redis
import structlog

from sessiond_webhook.deliveries import intents
from sessiond_webhook.demands.machine import UNANSWERED, Demand
from sessiond_webhook.demands.store import Accepted, Demands
from sessiond_webhook.demands.tickets import Tickets
from sessiond_webhook.ingress import metrics
from sessiond_webhook.ingress.task_port import TaskPort

log = structlog.get_logger("webhook.delivering")

EARLIER_SECONDS: Final = 2.0
"""How long a delivery sees to others' tickets: GitHub gives it up after 10."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a delivery came to, in one word; `withdrawn` are demands whose tickets are to go."""

    word: str
    demand: Demand | None = None
    withdrawn: tuple[Demand, ...] = ()
    task: str | None = None


class Delivering:
    """Acts on intents. Greenlets and threads may share it."""

    def __init__(self, demands: Demands, tickets: Tickets, tasks: TaskPort) -> None:
        self._demands, self._tickets, self._tasks = demands, tickets, tasks

    def commit(self, delivery: str, intent: intents.Intent) -> Outcome:
        """Durable when this returns. Raises redis.RedisError, or what the task store raises: then it is not sure."""
        match intent:
            case intents.Demanded(comment):
                # A task that is stuck goes on after the next comment in its thread. Waking twice is harmless, and a
                # delivery that is remembered as seen has woken.
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
                return self._once(delivery, "task", lambda: self._tasks.add_task(intent))
            case intents.Woken(session, number):
                return self._once(delivery, "woken", lambda: self._tasks.wake(session, number))
        raise ValueError(f"nothing is to be done for {intent}")

    def _once(self, delivery: str, word: str, act: Any) -> Outcome:
        """For what lies in another store: remembered as seen after it is done, never before; doing it twice is safe."""
        if self._demands.delivered(delivery):
            return Outcome("duplicate")
        done = act()
        self._demands.note_delivery(delivery, word)
        return Outcome(word, task=done if isinstance(done, str) and done else None)

    def tickets(self, outcome: Outcome) -> Outcome:
        """Takes or withdraws the tickets that the outcome asks for, best effort. Raises nothing of sessiond's."""
        for one in outcome.withdrawn:
            metrics.TICKETS.labels(outcome="withdrawn" if self._tickets.withdraw(one) else "not-withdrawn").inc()
        try:
            return self._place(outcome)
        except redis.RedisError as error:  # what was accepted stays so
            log.warning("no ticket: Redis is away", error=repr(error))
            return outcome

    def _place(self, outcome: Outcome) -> Outcome:
        demand = outcome.demand
        if demand is None or demand.ticket is not None or demand.state not in UNANSWERED:
            return outcome
        # Places are in the comments' order, also when another process is only about to take the earlier one's.
        ends = time.monotonic() + EARLIER_SECONDS
        for earlier in self._demands.without_ticket_before(demand):
            if time.monotonic() < ends:
                self._tickets.take(earlier)
        taken = self._tickets.take(demand)
        metrics.TICKETS.labels(outcome="taken" if taken is not None else "missing").inc()
        return outcome if taken is None else replace(outcome, demand=taken)


def _outcome(accepted: Accepted) -> Outcome:
    return Outcome(accepted.outcome, accepted.demand, accepted.withdrawn)
