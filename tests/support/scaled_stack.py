"""All services with their metrics, some with several processes, plus a flurry of comments and scrapes."""

import re
import urllib.request
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from sessiond_common.jobs.queue import Jobs, connect
from sessiond_webhook.demands.machine import Demand, DemandState
from sessiond_webhook.demands.store import Demands
from sessiond_worker.tasks.model import ENDS, NewTask, Task
from sessiond_worker.tasks.store import Tasks
from support.jobs.jobprocess import JobProcess
from support.servers import Redis, Sessiond, Webhook, eventually, free_port
from support.webhook import payloads

TIMES = {"lease_ttl": 3.0, "claim_window": 2.0, "head_wait": 1.0, "poll_grace": 0.5, "drain_deadline": 3.0}
BUSY, QUIET = "codertocat/hello-world", "codertocat/quiet"
TASK = 'Count.\n#tokens 150\n#pace 10ms\n#say {"outcome": "done", "note": "counted"}'

Labels = tuple[tuple[str, str], ...]


class Scrape:
    """The sums of the samples of one or several targets."""

    def __init__(self, *urls: str) -> None:
        self.values: Counter[tuple[str, Labels]] = Counter()
        self.kinds: dict[str, str] = {}
        """The metric type of each sample's name: counter, gauge, histogram, …"""
        for url in urls:
            with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
                for family in text_string_to_metric_families(answer.read().decode()):
                    for one in family.samples:
                        self.kinds[one.name] = family.type
                        self.values[one.name, tuple(sorted(one.labels.items()))] += one.value

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of all samples with these labels."""
        wanted = set(labels.items())
        return sum(v for (n, having), v in self.values.items() if n == name and wanted <= set(having))

    def by(self, name: str, *labels: str) -> Counter[tuple[str, ...]]:
        """Return the sums that are not 0, by the values of these labels."""
        found: Counter[tuple[str, ...]] = Counter()
        for (one, having), value in self.values.items():
            if one == name and value:
                found[tuple(dict(having)[label] for label in labels)] += value
        return found


class Stack:
    """sessiond, a webhook of two processes, two handlers, a poster that writes an outbox, and a worker."""

    def __init__(self, redis: Redis, service: Sessiond, place: Path, stack: ExitStack) -> None:
        self.service, self.place = service, place
        env = {
            "REDIS_URL": redis.url, "SESSIOND_URL": service.url, "SESSIOND_LEASE_TTL": str(TIMES["lease_ttl"]),
            "SESSIOND_KEY": service.keys["handler"], "OUTBOX_DIR": str(place / "outbox"),
        }  # fmt: skip
        self.targets: dict[str, list[str]] = {"sessiond": [service.url]}

        def jobs(module: str, name: str, more: Mapping[str, str] = {}) -> JobProcess:
            port = free_port()
            made = JobProcess(module, place / name, {**env, "METRICS_PORT": str(port), **more})
            stack.callback(made.close)
            self.targets.setdefault(name.partition("-")[0], []).append(f"http://127.0.0.1:{port}")
            return made

        self.webhook = Webhook(redis.url, place / "webhook", {**env, "SWEEP_SECONDS": "0.5"})
        stack.callback(self.webhook.close)
        self.targets["webhook"] = [self.webhook.url]
        self.handlers = [jobs("sessiond_webhook.handler", f"handler-{n}") for n in range(2)]
        self.poster = jobs("sessiond_webhook.poster", "poster")
        self.worker = jobs("sessiond_worker", "worker", {"SESSIOND_KEY": service.keys["worker"]})
        connection = connect(redis.url)
        stack.callback(connection.close)
        self.demands, self.tasks = Demands(connection, Jobs(connection)), Tasks(connection)
        for url in (url for urls in self.targets.values() for url in urls):
            eventually(lambda url=url: serves_metrics(url), 20, f"metrics of {url}")

    def scrape(self, *names: str) -> Scrape:
        """Scrape all targets with these names."""
        return Scrape(*(url for name in names for url in self.targets[name]))

    def task(self, key: str) -> Task:
        """Add a task and wait until its turn runs."""

        def turns() -> int:
            return Counter(e["event"] for e in self.service.ledger(BUSY))["turn-started"]

        before = turns()
        made = self.tasks.add(NewTask(key, BUSY, "Count", TASK))
        eventually(lambda: turns() > before, 30, "the worker's turn")
        return made

    def flurry(self, numbers: range) -> list[str]:
        """Post comments on two sessions. Every third one is on the less busy session. Returns the demands' keys."""
        keys = []
        for number in numbers:
            made = payloads.comment(f"IC_{number}", f"@helper {number}?\n#say it is {number}\n#cost 0.25", pull=False)
            if number % 3 == 0:
                made["repository"] |= {"full_name": "Codertocat/Quiet", "name": "Quiet"}
            assert self.webhook.post("issue_comment", made).status == 202
            keys.append(f"IC_{number}")
        return keys

    def wait_until_done(self, keys: list[str], *tasks: Task) -> list[Demand]:
        """Wait until all demands are posted and these tasks have ended. Returns the demands' records."""

        def done() -> bool:
            found = [self.demands.get(key) for key in keys]
            return all(one is not None and one.state is DemandState.POSTED for one in found) and all(
                self.tasks.get(task.id).state in ENDS for task in tasks
            )

        eventually(done, 90, "all demands posted, all tasks ended")
        return [found for key in keys if (found := self.demands.get(key)) is not None]


def serves_metrics(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=2) as answer:
            return bool(re.search(rb"_build_info", answer.read()))
    except OSError:
        return False
