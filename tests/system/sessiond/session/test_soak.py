"""Thousands of handoffs: no place is lost, no ticket is overtaken, nothing in the service or in Redis grows forever."""

import json
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import redis as redis_library
from prometheus_client.parser import text_string_to_metric_families

from sessiond.client import Client
from sessiond.verify import Reader
from support.servers import TESTS, Redis, Sessiond, eventually, scripted_env
from support.size import FULL

SESSIONS = tuple(f"octo/soak-{n}" for n in range(4))
HANDLERS = 15
"""Handlers of each session. With its worker, 16 callers wait in a session, and 64 in total."""
ROUNDS, GRANTS = (20, 250) if FULL else (3, 50)
PATIENCE = 500.0
WORKERS = ROUNDS + 1
"""Grants to the worker of a session. Each round preempts one, and the worker releases the last one."""
GROWTH = 3.0 if FULL else 2.0
"""MiB by which the worker process may grow after the first quarter of the handoffs."""
READS = 2 * len(SESSIONS)
"""Connections to Redis for concurrent reads: the ledger for a caller and for the audit, and a lost lease."""
FIXED = {"meta", "ledger", "agent", "queue", "tickets", "lease", "drain", "open"}
REMEMBERED = {"past", "ended", "turn", "turnkey"}


class Reading:
    """Reads the ledgers while they are written, because a trimmed ledger cannot be checked later."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._readers = {name: Reader() for name in SESSIONS}
        self._after: dict[str, str | None] = dict.fromkeys(SESSIONS)
        self.handoffs = self.entries = self.preemptions = 0
        self.wrong: list[object] = []
        self.events: Counter[str] = Counter()

    def on(self) -> int:
        """Read the new entries. Returns their number."""
        new = 0
        for name, reader in self._readers.items():
            page = self._client.ledger(name, self._after[name])
            for entry in page:
                reader.read(entry)
                self.events[entry["event"]] += 1
            if page:
                self._after[name] = page[-1]["id"]
            found = reader.take()
            self.handoffs += found.handoffs
            self.preemptions += found.preemptions
            self.wrong += [*found.violations, *(["inversion"] * found.inversions), *(["misorder"] * found.misorders)]
            new += len(page)
        self.entries += new
        return new


class Measured:
    """The sizes of the worker process and of Redis at one moment."""

    def __init__(self, worker: psutil.Process, redis: Any) -> None:
        self.rss = worker.memory_info().rss / 2**20
        self.fds = worker.num_fds()
        self.cpu = sum(worker.cpu_times()[:2])
        self.redis = redis.info("memory")["used_memory"] / 2**20


def gauge(service: Sessiond, name: str) -> float:
    with urllib.request.urlopen(f"{service.url}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return sum(one.value for family in families for one in family.samples if one.name == name)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_thousands_of_handoffs_lose_no_place_and_leak_nothing(
    sessiond: Callable[..., Sessiond], redis_server: Redis, figures: Callable[[str], None]
) -> None:
    service = sessiond(scripted_env())
    client, redis = service.client(), redis_library.Redis.from_url(redis_server.url)
    for name in SESSIONS:  # so that every agent is awake before the measurement
        with client.lease(name) as lease:
            assert lease.turn("#say ready").result().completed
    (worker,) = psutil.Process(service.pid).children()
    reading = Reading(client)
    while reading.on():
        pass
    idle, begun, first = Measured(worker, redis), time.monotonic(), reading.handoffs
    total = len(SESSIONS) * (ROUNDS * GRANTS + WORKERS)
    counts, points = soaked(service, reading, lambda: Measured(worker, redis), first, total)
    took = time.monotonic() - begun
    assert (counts["errors"], counts["twice"], counts["grants"]) == ([], 0, total)
    assert counts["preempted"] == reading.preemptions == len(SESSIONS) * ROUNDS
    assert reading.wrong == []
    assert reading.handoffs - first == total
    assert not reading.events.keys() & {"passed-over", "lapsed", "recovery", "refused", "restored"}
    bound = idle.fds + READS
    eventually(lambda: worker.num_fds() <= bound, 10, lambda: f"{worker.num_fds()} open files, {idle.fds} before")
    assert gauge(service, "sessiond_queue_length") == gauge(service, "sessiond_queue_present") == 0
    for what in ("inversions", "misorders", "violations"):
        assert gauge(service, f"sessiond_{what}_total") == 0
    kept = judged(redis, total + first)
    rss = [f"{p.rss:.1f}" for p in points]
    grown = points[-1].rss - points[0].rss
    figures(
        f"{total} handoffs by {len(SESSIONS) * (HANDLERS + 1)} waiters in {took:.0f} s, {total / took:.0f} a second "
        f"({(points[-1].cpu - idle.cpu) / total * 1000:.1f} ms of CPU each), "
        f"{counts['preempted']} preemptions, {counts['turns']} turns, {reading.entries} entries, 0 inversions"
    )
    figures(
        f"RSS {idle.rss:.1f} MiB idle, {' '.join(rss)} at each quarter: {grown / (0.75 * total) * 2**20:.0f} bytes a "
        f"handoff; open files {idle.fds} idle, {' '.join(str(p.fds) for p in points)}, {worker.num_fds()} after; "
        f"Redis {' '.join(f'{p.redis:.1f}' for p in points)} MiB; keys {kept}"
    )
    assert grown < GROWTH
    waiting = len(SESSIONS) * (HANDLERS + 1)
    assert max(p.fds for p in points) <= bound + waiting, "more open files than connections"


def soaked(
    service: Sessiond, reading: Reading, measure: Callable[[], Measured], first: int, total: int
) -> tuple[dict[str, Any], list[Measured]]:
    """Run the load, read the ledgers meanwhile, and measure at each quarter. Returns the load's reports."""
    command = [
        sys.executable,
        str(TESTS / "support" / "standins" / "load_generator.py"),
        service.url,
        service.keys["admin"],
    ]
    command += [",".join(SESSIONS), str(HANDLERS), str(ROUNDS), str(GRANTS)]
    points: list[Measured] = []
    ends = time.monotonic() + PATIENCE
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as load:
        try:
            while load.poll() is None and time.monotonic() < ends:
                reading.on()
                time.sleep(0.2)  # because reads also take time in the service
                if len(points) < 3 and reading.handoffs - first >= total * (len(points) + 1) / 4:
                    points.append(measure())
        finally:
            load.kill()
        assert load.stdout is not None
        counts: dict[str, Any] = json.loads(load.stdout.read() or '{"errors": "the load generator printed nothing"}')
    while reading.on():
        pass
    return counts, [*points, measure()]


def judged(redis: Any, leases: int) -> dict[str, int]:
    """Check that each key of the sessions is in a fixed set or expires. Returns their numbers."""
    found: Counter[str] = Counter()
    forever: list[str] = []
    for raw in redis.scan_iter(match="sessiond:{octo/soak-*", count=5000):
        kind = raw.decode().partition("}:")[2].partition(":")[0]
        found[kind] += 1
        if kind in REMEMBERED and redis.ttl(raw) < 0:
            forever.append(raw.decode())
    assert forever == []
    assert found.keys() <= FIXED | REMEMBERED
    assert all(found[kind] <= len(SESSIONS) for kind in FIXED)
    assert found["past"] == leases and found["ended"] <= leases
    for name in SESSIONS:
        base = f"sessiond:{{{name}}}:"
        assert redis.zcard(base + "queue") == redis.hlen(base + "tickets") == 0
        assert redis.hlen(base + "meta") <= 12
    return dict(found)
