"""Gauges of what is durable: read from Redis when webhook is scraped, by whichever process answers.

Webhook tells them and nobody else: it is there as long as anything is accepted, and every process of every replica
reads the same records, so all say the same and a query takes the greatest. While Redis is away they are missing, and
nothing else of the scrape is.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

import redis
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sessiond_common.clock import seconds_since
from sessiond_webhook.demands.machine import State
from sessiond_webhook.demands.store import Demands
from sessiond_worker.tasks.model import TaskState
from sessiond_worker.tasks.store import Tasks


class Gauges(Collector):
    """Demands, pending posts and tasks, all sessions together."""

    def __init__(self, demands: Demands, tasks: Tasks) -> None:
        self._demands, self._tasks = demands, tasks

    def describe(self) -> Iterable[Metric]:
        """Nothing is told beforehand."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The gauges, or none."""
        try:
            yield from [*self._of_demands(), self._of_tasks()]
        except redis.RedisError:
            return

    def _of_demands(self) -> list[Metric]:
        states, opened = self._demands.ended(), list[str]()
        for session in self._demands.sessions():
            for one in self._demands.unanswered(session):
                states[one.state] += 1
                opened.append(one.at[State.OPEN.value])
        pending = self._demands.pending()
        states[State.ANSWERED] = sum(one.state is State.ANSWERED for one in pending)
        opened += [one.at[State.OPEN.value] for one in pending if one.state is State.ANSWERED]
        by_state = GaugeMetricFamily("webhook_demands", "Demands; ended ones for 30 days", labels=["state"])
        for state in State:
            by_state.add_metric([state.value], states[state])
        oldest = GaugeMetricFamily("webhook_oldest_demand_seconds", "Age of the oldest demand without a posted answer")
        oldest.add_metric([], max(map(seconds_since, opened), default=0.0))
        posts = GaugeMetricFamily("webhook_pending_posts", "Notes that are to be brought up to date")
        posts.add_metric([], len(pending))
        return [by_state, oldest, posts]

    def _of_tasks(self) -> Metric:
        states = Counter(task.state for task in self._tasks.list())
        found = GaugeMetricFamily("worker_tasks", "Tasks; ended ones for 30 days", labels=["state"])
        for state in TaskState:
            found.add_metric([state.value], states[state])
        return found
