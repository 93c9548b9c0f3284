"""Gauges of durable records. The process that answers a scrape reads them from Redis.

Only the webhook exports them, because it runs as long as deliveries are accepted. Each process of each replica reads
the same records, so a query takes the maximum. While Redis is away, only these gauges are missing from a scrape.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

import redis
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sessiond_common.clock import seconds_since
from sessiond_webhook.demands.machine import DemandState
from sessiond_webhook.demands.store import Demands
from sessiond_worker.tasks.model import TaskState
from sessiond_worker.tasks.store import Tasks


class Gauges(Collector):
    """Demands, pending posts and tasks of all sessions together."""

    def __init__(self, demands: Demands, tasks: Tasks) -> None:
        self._demands, self._tasks = demands, tasks

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that the registration of this collector does not read Redis."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges, or nothing while Redis is away."""
        try:
            yield from [*self._of_demands(), self._of_tasks()]
        except redis.RedisError:
            return

    def _of_demands(self) -> list[Metric]:
        states, opened = self._demands.ended(), list[str]()
        for session in self._demands.sessions():
            for one in self._demands.unanswered(session):
                states[one.state] += 1
                opened.append(one.at[DemandState.OPEN.value])
        pending = self._demands.pending()
        states[DemandState.ANSWERED] = sum(one.state is DemandState.ANSWERED for one in pending)
        opened += [one.at[DemandState.OPEN.value] for one in pending if one.state is DemandState.ANSWERED]
        by_state = GaugeMetricFamily("webhook_demands", "Demands by state; ended ones for 30 days", labels=["state"])
        for state in DemandState:
            by_state.add_metric([state.value], states[state])
        oldest = GaugeMetricFamily("webhook_oldest_demand_seconds", "Age of the oldest demand without a posted answer")
        oldest.add_metric([], max(map(seconds_since, opened), default=0.0))
        posts = GaugeMetricFamily("webhook_pending_posts", "Notes that are out of date and wait for a poster")
        posts.add_metric([], len(pending))
        return [by_state, oldest, posts]

    def _of_tasks(self) -> Metric:
        states = Counter(task.state for task in self._tasks.list())
        found = GaugeMetricFamily("worker_tasks", "Tasks by state; ended ones for 30 days", labels=["state"])
        for state in TaskState:
            found.add_metric([state.value], states[state])
        return found
