"""An agent writes tens of thousands of lines per second, and its caller does not read. Memory stays bounded."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sessiond.client import Gap, TurnResult
from sessiond.verify import verify
from support.servers import Sessiond, eventually, scripted_env, tree
from support.size import FULL

SESSION = "octo/hello"
MB = 2**20
SENT, LINES = (64 * MB, 150_000) if FULL else (20 * MB, 60_000)
"""The test ends when either the bytes or the lines were sent."""
GROWTH = 60 * MB
TIMES = {"drain_deadline": 120.0, "claim_window": 60.0, "not_taken": 60.0}


def resident(service: Sessiond) -> int:
    """Return the resident bytes of sessiond's own processes, without guards and agents."""
    own = [p for p in tree(service.pid) if "sessiond.main" in " ".join(p.cmdline())]
    return sum(p.memory_info().rss for p in own)


class PeakMemory:
    """Measures the highest resident size."""

    def __init__(self, service: Sessiond) -> None:
        self.service, self.first, self.most = service, resident(service), 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._done.wait(0.1):
            self.most = max(self.most, resident(self.service))

    def stop(self) -> int:
        self._done.set()
        self._thread.join()
        return self.most - self.first


def sent(place: Path) -> int:
    file = place / "torrent.mark"
    return int(file.read_text() or 0) if file.exists() else 0


@pytest.mark.parametrize("size", [64, 900, 2 * MB], ids=["small", "usual", "2 MB"])
def test_a_flood_of_lines_is_bounded_and_interruptible(
    sessiond: Callable[..., Sessiond], figures: Callable[[str], None], size: int
) -> None:
    service = sessiond(scripted_env(**TIMES))
    client, results, gaps = service.client(), [], []
    with client.lease("octo/other") as lease:
        lease.turn("#say awake").result()
    watch, enough = PeakMemory(service), min(SENT, LINES * size)
    preempted = threading.Event()

    def worker() -> None:
        with service.client().lease(SESSION, kind="worker", key="w") as lease:
            turn = lease.turn(f"#fault torrent={size}")
            preempted.wait(120)  # start to read only now
            for event in turn:
                gaps.extend([event.lost] if isinstance(event, Gap) else [])
                results.extend([event] if isinstance(event, TurnResult) else [])

    thread = threading.Thread(target=worker)
    thread.start()
    place = service.state / "work" / SESSION
    eventually(lambda: sent(place) > enough // 10, 120, "it floods")
    begun, before = time.monotonic(), sent(place)
    for number in range(5):
        with client.lease("octo/other") as lease:
            assert lease.turn(f"#say meanwhile {number}").result().text == f"meanwhile {number}"
    eventually(lambda: sent(place) > enough, 120, "enough was sent")
    rate = (sent(place) - before) / size / (time.monotonic() - begun)
    growth = watch.stop()
    with client.lease(SESSION, key="h") as lease:
        preempted.set()
        assert lease.turn("#say next").result().text == "next"
    thread.join(120)
    entries = client.ledger(SESSION)
    closed = [e for e in entries if e["event"] == "turn-closed"]
    assert [(t.outcome, t.reason) for t in results] == [("cancelled", "preempted")] and sum(gaps) > 0
    assert [e["outcome"] for e in closed] == ["cancelled", "completed"]
    assert not [e for e in entries if e["event"] in ("recovery", "refused")] and verify(entries).violations == []
    took = closed[0]["ticket_to_interrupt_ms"], closed[0]["interrupt_to_closed_ms"]
    figures(f"lines of {size}: {rate:.0f} a second, {sent(place) // MB} MB, "
            f"{sum(gaps)} lines lost, resident +{growth // MB} MB, "
            f"ticket to interrupt {took[0]:.0f} ms, to closed {took[1]:.0f} ms")  # fmt: skip
    assert growth < GROWTH
