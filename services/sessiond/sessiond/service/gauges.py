"""The gauges of each owned session, collected at each scrape. No other metrics have the label `session`."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from sessiond.agent.process.memory import tree_bytes
from sessiond.agent.state import Phase
from sessiond.lock.rules import Kind
from sessiond.lock.state import Lock
from sessiond.session.loop import Session

HOLDERS: Final = {None: 0, Kind.HANDLER: 1, Kind.WORKER: 2}
DRAINING: Final = 3


class Gauges(Collector):
    """Gauges of the sessions that `running` returns."""

    def __init__(self, running: Callable[[], Iterable[Session]]) -> None:
        self._running = running

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that registration collects no session."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges."""
        queue = _gauge("sessiond_queue_length", "Tickets in the queue", "session", "kind")
        present = _gauge("sessiond_queue_present", "Tickets in the queue that somebody waits on", "session", "kind")
        oldest = _gauge("sessiond_oldest_wait_seconds", "The longest of the waits that go on", "session", "kind")
        holder = _gauge("sessiond_holder", "0 nobody, 1 a handler, 2 the worker, 3 draining", "session")
        memory = _gauge("sessiond_agent_memory_bytes", "Resident memory of the agent's whole tree", "session")
        agents = _gauge("sessiond_agents", "Agents of the sessions owned here", "state")
        phases: Counter[Phase] = Counter()
        for session in self._running():
            reader = session.reader
            lock, waits, guard = reader.lock, reader.oldest_waits(), reader.guard
            for kind in Kind:
                labels = [session.name, kind.value]
                queue.add_metric(labels, sum(t.kind is kind for t in lock.queue))
                present.add_metric(labels, sum(t.kind is kind and t.present for t in lock.queue))
                oldest.add_metric(labels, waits[kind])
            holder.add_metric([session.name], _holder(lock))
            memory.add_metric([session.name], tree_bytes(int(guard["pid"])) if guard else 0)
            phases[reader.agent.phase] += 1
        for phase in Phase:
            agents.add_metric([phase.value], phases[phase])
        yield from (queue, present, oldest, holder, memory, agents)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=labels)


def _holder(lock: Lock) -> int:
    if lock.lease is not None:
        return HOLDERS[lock.lease.kind]
    return DRAINING if lock.drain is not None else HOLDERS[None]
