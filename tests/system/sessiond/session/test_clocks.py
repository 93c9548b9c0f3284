"""The wall clock jumps by a day, forward and back, under a running service. It decides nothing.

A preloaded library (standins/stepped_clock.c) changes the realtime clock of a running process. The monotonic clock
does not change, as when an operator or NTP sets the clock of the machine.
"""

import os
import shutil
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis as redis_library

from sessiond.client import Client, Turn, TurnResult
from sessiond.verify import verify
from support.servers import TESTS, Redis, Sessiond, eventually, scripted_env
from support.size import FULL
from support.summary import Row

COMPILER = shutil.which("cc") or shutil.which("gcc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler for the clock that can be stepped")

HELD, FREE = "octo/held", "octo/free"
DAY = timedelta(days=1)
STEPS = (1, -1, 0, -1, 30, 0) if FULL else (1, -1)
"""Days from the true time. Each jump starts from the previous one."""
Start = Callable[..., Sessiond]


class Clock:
    """The wall clock of every process started with `env`."""

    def __init__(self, place: Path, library: Path) -> None:
        self._file = place / "offset"
        self.step(0)
        self.env = {"LD_PRELOAD": str(library), "STEPPED_CLOCK": str(self._file)}

    def step(self, days: int) -> None:
        """Set the clock to this many days from the true time."""
        self.off = timedelta(days=days)
        # Written in place, because the processes have mapped the file and see the change at once.
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(struct.pack("=q", int(self.off.total_seconds())))

    def now(self) -> datetime:
        return datetime.now(UTC) + self.off


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("clock") / "stepped_clock.so"
    source = TESTS / "support" / "standins" / "stepped_clock.c"
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-O2", "-o", made, source, "-ldl"], check=True)
    return made


@pytest.fixture
def clock(tmp_path: Path, library: Path) -> Clock:
    return Clock(tmp_path, library)


@pytest.fixture
def stepped_redis(clock: Clock) -> Iterator[Redis]:
    """A Redis on the changed clock."""
    before = dict(os.environ)
    os.environ.update(clock.env)
    try:
        server = Redis()
    finally:
        os.environ.clear()
        os.environ.update(before)
    yield server
    server.close()


def ask(client: Client, method: str, session: str, path: str, body: object = None, secret: str | None = None) -> Any:
    return client.transport.call(method, path, session=session, body=body, secret=secret, timeout=70).body


def wait(client: Client, session: str, ticket: str, holder: str, seconds: float) -> dict[str, Any]:
    found: dict[str, Any] = ask(client, "POST", session, f"/tickets/{ticket}/wait", {"holder": holder, "wait": seconds})
    return found


def everything(client: Client, session: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while entries := client.ledger(session, found[-1]["id"] if found else None):
        found += entries
    return found


def has_looked(client: Client, redis: Redis, session: str, key: str) -> None:
    """Wait until the loop has checked its timers and the owner has renewed its record twice."""

    def beat() -> int:
        with redis_library.Redis.from_url(redis.url) as found:
            return int(found.hget(f"sessiond:{{{session}}}:meta", "beat"))

    begun = beat()
    for _ in range(2):
        client.take(
            session, kind="worker", key=key
        )  # The ticket exists, so this makes no step but one pass of the loop.
    eventually(lambda: beat() >= begun + 2)


def test_the_wall_clock_of_sessiond_decides_nothing(
    sessiond: Start, redis_server: Redis, clock: Clock, matrix: Row
) -> None:
    """A lease without renewals, a ticket that blocks the worker, a turn and waits all survive every jump."""
    service = sessiond(scripted_env(claim_window=2.0, owner_renew=0.3) | clock.env)
    client = service.client()
    holder, waiting = client.take(HELD, key="holder")["id"], client.take(HELD, key="waiting")["id"]
    lease = wait(client, HELD, holder, "h", 5)["lease"]
    ask(client, "POST", HELD, "/lease/renew", secret=lease["secret"])
    client.take(HELD, kind="worker", key="worker")
    client.take(FREE, key="bars")
    barred = client.take(FREE, kind="worker", key="worker")["id"]
    turned: list[TurnResult] = []
    granted: list[Any] = []
    prompt = {"prompt": "#tokens 300\n#pace 10ms\n#say through"}

    def turn() -> None:
        stream = client.transport.stream("POST", "/turns", session=HELD, body=prompt, secret=lease["secret"])
        turned.append(Turn(client.transport, HELD, stream, lambda _: None).result())

    threads = [
        threading.Thread(target=turn),
        threading.Thread(target=lambda: granted.append(wait(service.client(), HELD, waiting, "w", 120))),
        threading.Thread(target=lambda: granted.append(wait(service.client(), FREE, barred, "w", 120))),
    ]
    for thread in threads:
        thread.start()
    eventually(lambda: client.ticket(HELD, waiting)["present"] and client.ticket(FREE, barred)["present"])
    eventually(lambda: any(e["event"] == "turn-started" for e in client.ledger(HELD)))
    before = {name: everything(client, name) for name in (HELD, FREE)}
    for days in STEPS:
        clock.step(days)
        for name in (HELD, FREE):
            has_looked(client, redis_server, name, "worker")
            new = {e["event"] for e in everything(client, name)[len(before[name]) :]}
            assert new <= {"turn-closed"}, f"{days:+} days: {new}"
        renewed = ask(client, "POST", HELD, "/lease/renew", secret=lease["secret"])
        left = shown(renewed["expires_at"]) - clock.now()
        assert timedelta(seconds=20) < left <= timedelta(seconds=31), f"{days:+} days: {left}"
        assert [t["key"] for t in client.view(HELD)["queue"]] == ["waiting", "worker"]
        matrix(
            "clocks",
            clock="sessiond's",
            at=f"{days:+} days",
            changed="nothing",
            lease_left=f"{left.total_seconds():.1f} s",
        )
    threads[0].join(60)
    assert [(t.outcome, t.text) for t in turned] == [("completed", "through")]
    # Timers still expire, even if the clock is set back meanwhile.
    clock.step(1)
    ask(client, "DELETE", HELD, "/lease", secret=lease["secret"])
    threads[1].join(30)
    clock.step(-1)
    eventually(lambda: any(e.get("reason") == "unclaimed" for e in everything(client, HELD)), 20, service.log_text)
    client.withdraw(FREE, client.take(FREE, key="bars")["id"])
    threads[2].join(30)
    assert [g["state"] for g in granted] == ["granted", "granted"]
    for name in (HELD, FREE):
        assert verify(everything(client, name)).violations == []


def test_the_wall_clock_of_redis_decides_nothing(
    stepped_redis: Redis, tmp_path: Path, clock: Clock, matrix: Row
) -> None:
    """Epoch and fence grow although the clock of Redis went back, and keys with 30 days to live stay."""
    service = Sessiond(stepped_redis.url, tmp_path / "a", scripted_env(owner_renew=0.3, claim_window=2.0))
    try:
        _redis_steps(service, stepped_redis, clock, matrix)
    finally:
        service.close()


def _redis_steps(service: Sessiond, redis: Redis, clock: Clock, matrix: Row) -> None:
    client = service.client()
    with client.lease(HELD, key="first") as lease:
        turn = lease.turn("remembered")
        assert turn.result().completed
    lost = lease.secret
    for key in ("b", "c"):
        client.take(HELD, key=key)
    epochs, fences, cursor = [client.view(HELD)["epoch"]], [lease.fence], everything(client, HELD)[-1]["id"]
    steps = [days for days in STEPS if days < 30]  # after a month, keys with a month to live are gone
    for number, days in enumerate(steps):
        clock.step(days)
        has_looked(client, redis, HELD, f"worker-{number}")
        with redis_library.Redis.from_url(redis.url) as found:
            assert abs(found.time()[0] - clock.now().timestamp()) < 60
        if number % 2:
            service.kill9()  # the next epoch begins while the clock is set back
            service.start()
        assert [t["key"] for t in client.view(HELD)["queue"]][:2] == ["b", "c"]
        with client.lease(HELD, key=f"urgent-{number}", priority=0) as lease:
            lease.check()
        epochs.append(client.view(HELD)["epoch"])
        fences.append(lease.fence)
        new = client.ledger(HELD, cursor)
        assert [e["fence"] for e in new if e["event"] == "granted"] == [lease.fence], (
            "the cursor must stay valid after the clock change"
        )
        cursor = new[-1]["id"]
        assert client.turn(HELD, turn.id)["outcome"] == "completed"
        ask(client, "DELETE", HELD, "/lease", secret=lost)  # released long ago, but still stored
        matrix(
            "clocks",
            clock="Redis's",
            at=f"{days:+} days",
            changed="nothing",
            epoch=epochs[-1] - epochs[0],
            fence="grew",
        )
    assert epochs == sorted(epochs) and len(set(epochs)) == 1 + len(steps) // 2
    assert fences == sorted(set(fences))
    entries = everything(client, HELD)
    assert verify(entries).violations == []
    assert not [e for e in entries if e["event"] in ("lapsed", "passed-over", "restored", "refused")]
    assert [e["reason"] for e in entries if e["event"] == "ended"] == ["released"] * (1 + len(steps))


def shown(text: str) -> datetime:
    return datetime.fromisoformat(text)
