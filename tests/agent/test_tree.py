"""Whatever ends an agent's process ends all of its tree, and nobody starts the next one before.

Each worker's turn has a tool that leaves a process behind in every way (tests/strays.py). Here with the scripted agent;
the real one is in tests/real/test_tree.py.
"""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
import redis as redis_library

from servers import Redis, Sessiond, alive, eventually, scripted_env, tree
from sessiond.client import SessiondError
from sessiond.verify import verify
from size import FULL
from strays import WAYS, Strays

SESSION = "octo/hello"
LONG = "#tokens 100000\n#pace 10ms"
Start = Callable[..., Sessiond]
Row = Callable[..., None]
full = pytest.mark.skipif(not FULL, reason="of the full form")


class Stand:
    """A session whose worker is in a turn that left its strays, and who holds its lease until it is lost."""

    def __init__(
        self, service: Sessiond, session: str, prompt: str = LONG, ways: Sequence[str] = (), ttl: float = 30.0
    ):
        self.service, self.session, self.client = service, session, service.client()
        self.strays, self.told = Strays(*ways), list[Any]()
        self._prompt, self._ttl, self._over = f"#spawn {self.strays.command}\n{prompt}", ttl, threading.Event()
        self._thread = threading.Thread(target=self._hold)
        self._thread.start()
        self.strays.wait()
        eventually(lambda: self.events("turn-started"))
        guard = self.events("agent-started")[-1]["guard"]
        self.guard, self.agent = int(guard["pid"]), int(guard["agent_pid"])
        self._tree = tree(self.guard)
        assert len(self._tree) > len(self.strays.ways)

    def _hold(self) -> None:
        try:
            client = self.service.client()
            with client.lease(self.session, kind="worker", key="w", lease_ttl=self._ttl) as lease:
                self.told.append(lease.turn(self._prompt).result())
                while not lease.lost.is_set() and not self._over.wait(0.05):
                    pass
        except SessiondError as error:
            self.told.append(error)

    @property
    def fence(self) -> int:
        return int(self.client.view(self.session)["holder"]["fence"])

    def ledger(self) -> list[dict[str, Any]]:
        return self.client.ledger(self.session)

    def events(self, event: str) -> list[dict[str, Any]]:
        return [e for e in self.ledger() if e["event"] == event]

    def until_draining(self) -> None:
        eventually(lambda: self.events("draining"))

    def until_turn_over(self) -> None:
        """The strays live on."""
        eventually(lambda: self.told, 20)
        assert set(self.strays.found().values()) == set(self.strays.ways)

    def leave(self) -> None:
        """The worker gives its lease back, if it has one."""
        self._over.set()
        self._thread.join(40)
        assert not self._thread.is_alive()

    def left(self) -> list[str]:
        """What still runs of the tree, as it was, and of the strays, wherever they are."""
        return [str(p) for p in self._tree if alive(p)] + sorted(self.strays.found().values())

    def next_turn(self) -> list[str]:
        """A handler's turn; what of the old tree lived when its agent had answered."""
        with self.service.client().lease(self.session, key="next", timeout=60) as lease:
            assert lease.turn("#say next").result().text == "next"
            left = self.left()
        self.leave()
        return left

    def check(self) -> str:
        """The ledger: an agent after the other. Why the strays' one was reaped."""
        running, whys = False, []
        for entry in self.ledger():
            if entry["event"] == "agent-starting":
                assert not running, f"{self.session}: an agent was started before the one before it was reaped"
                running = True
            elif entry["event"] == "agent-reaped":
                running = False
                whys.append(entry["why"])
        assert len(self.events("agent-starting")) > 1
        assert verify(self.ledger()).violations == []
        return str(whys[0])


# ---- ends that the service survives ------------------------------------------------------------


def nothing(stand: Stand) -> None:
    """The next handler's ticket is what ends it."""


def forced(stand: Stand) -> None:
    stand.client.force_release(stand.session, stand.fence, "the test's")
    stand.until_draining()


def forced_in_draining(stand: Stand) -> None:
    fence = stand.fence
    stand.client.force_release(stand.session, fence, "the test's")
    stand.until_draining()
    stand.client.force_release(stand.session, fence, "the test's, once more")


def expired(stand: Stand) -> None:
    eventually(lambda: any(e["reason"] == "expired" for e in stand.events("ended")), 20)


def guard_killed(stand: Stand) -> None:
    os.kill(stand.guard, signal.SIGKILL)


def agent_killed(stand: Stand) -> None:
    os.kill(stand.agent, signal.SIGKILL)


def restarted(stand: Stand) -> None:
    stand.client.restart_agent(stand.session)


def afresh(stand: Stand) -> None:
    stand.until_turn_over()
    stand.client.new_conversation(stand.session)


def asleep(stand: Stand) -> None:
    stand.until_turn_over()
    stand.leave()
    eventually(lambda: stand.client.view(stand.session)["agent"]["state"] == "asleep", 20)


WITHOUT_BARE = tuple(way for way in WAYS if way != "bare")
ENDS: dict[str, tuple[Callable[[Stand], None], str, str]] = {
    "an interrupt is ignored": (nothing, f"#fault ignore-interrupt\n{LONG}", "drain-deadline"),
    "the turn does not close": (nothing, "#fault no-close", "drain-deadline"),
    "forced in a turn": (forced, f"#fault ignore-interrupt\n{LONG}", "drain-deadline"),
    "forced in draining": (forced_in_draining, f"#fault ignore-interrupt\n{LONG}", "forced"),
    "the lease expires": (expired, f"#fault ignore-interrupt\n{LONG}", "drain-deadline"),
    "kill -9 of the guard": (guard_killed, LONG, "died"),
    "kill -9 of the agent": (agent_killed, LONG, "died"),
    "restart": (restarted, LONG, "restart"),
    "a fresh conversation": (afresh, "#say done", "conversation"),
    "sleep": (asleep, "#say done", "sleep"),
}


def test_the_tree_is_gone_before_the_next_agent(sessiond: Start, matrix: Row) -> None:
    times = {"drain_deadline": 3.0, "lease_ttl": 4.0, "idle": 3.0}
    service = sessiond({**scripted_env(**times), "SESSIOND_MAX_AGENTS": str(len(ENDS))})

    def run(name: str) -> tuple[str, Stand, list[str]]:
        end, prompt, _ = ENDS[name]
        # Found by its environment once its guard was killed: who has none is not.
        ways = WITHOUT_BARE if end is guard_killed else tuple(WAYS)
        stand = Stand(service, f"octo/{list(ENDS).index(name)}", prompt, ways, 30.0 if end is expired else 4.0)
        end(stand)
        return name, stand, stand.next_turn()

    with ThreadPoolExecutor(len(ENDS)) as pool:
        for name, stand, left in pool.map(run, ENDS):
            why = stand.check()
            matrix("trees", end=name, why=why, children=len(stand.strays.ways), left=", ".join(left) or 0)
            assert (left, why) == ([], ENDS[name][2]), name


# ---- ends of the service -----------------------------------------------------------------------


def worker_of(service: Sessiond) -> psutil.Process:
    (worker,) = psutil.Process(service.pid).children()
    return worker


def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def sigterm(service: Sessiond, stand: Stand) -> None:
    service.terminate()
    assert stand.left() == [], "nothing outlives a service that ends by itself"
    service.start()


def worker_killed(service: Sessiond, stand: Stand) -> None:
    worker_of(service).kill()


def master_killed(service: Sessiond, stand: Stand) -> None:
    service.remember()
    worker = worker_of(service)
    kill(service.pid)
    service.reap()
    eventually(lambda: not alive(worker), 20, "the worker sees that its master is gone")
    service.start()


def both_killed(service: Sessiond, stand: Stand) -> None:
    service.kill9()
    eventually(lambda: not stand.left(), 5, lambda: f"the guard ends its tree: {stand.left()}")
    service.start()


def guard_and_both_killed(service: Sessiond, stand: Stand) -> None:
    kill(stand.guard)
    service.kill9()
    service.start()


SERVICE_ENDS = [
    pytest.param(sigterm, WAYS, "shutdown", id="SIGTERM"),
    pytest.param(both_killed, WAYS, "owner-restart", id="kill -9 of master and worker"),
    pytest.param(guard_and_both_killed, WITHOUT_BARE, "owner-restart", id="kill -9 of guard, master and worker"),
    pytest.param(worker_killed, WAYS, "owner-restart", id="kill -9 of the worker", marks=full),
    pytest.param(master_killed, WAYS, "shutdown", id="kill -9 of the master", marks=full),
]


@pytest.mark.parametrize("end, ways, why", SERVICE_ENDS)
def test_the_tree_ends_with_its_owner(
    sessiond: Start,
    matrix: Row,
    request: pytest.FixtureRequest,
    end: Callable[..., None],
    ways: Sequence[str],
    why: str,
) -> None:
    service = sessiond(scripted_env())
    stand = Stand(service, SESSION, LONG, ways)
    end(service, stand)
    left = stand.next_turn()
    name = request.node.callspec.id
    matrix("trees", end=name, why=stand.check(), children=len(ways), left=", ".join(left) or 0)
    assert (left, stand.check()) == ([], why)


# ---- an owner that no longer is one -------------------------------------------------------------


@full
def test_a_deposed_owners_tree_is_gone_before_its_successors_agent(
    sessiond: Start, redis_server: Redis, matrix: Row
) -> None:
    """It stood still for so long that another took the session; that one waits for the guard all the same."""
    times = {"owner_ttl": 1.5, "owner_renew": 0.3}
    first, second = sessiond(scripted_env(**times), name="a"), sessiond(scripted_env(**times), name="b")
    stand = Stand(first, SESSION)
    worker = worker_of(first)
    worker.suspend()
    try:
        meta = redis_library.Redis.from_url(redis_server.url, decode_responses=True)
        eventually(lambda: meta.hget(f"sessiond:{{{SESSION}}}:meta", "url") == second.url, 20)
        assert set(stand.strays.found().values()) == set(WAYS), "the owner that stands still has its tree still"
    finally:
        worker.resume()
    stand.service, stand.client = second, second.client()
    left = stand.next_turn()
    matrix("trees", end="deposed", why=stand.check(), children=len(WAYS), left=", ".join(left) or 0)
    assert (left, stand.check()) == ([], "owner-restart")


@full
def test_an_owner_in_doubt_ends_its_tree(sessiond: Start, redis_server: Redis, matrix: Row) -> None:
    service = sessiond(scripted_env(owner_doubt=1.0, owner_renew=0.3))
    stand = Stand(service, SESSION)
    redis_server.pause()
    try:
        eventually(lambda: not stand.left(), 30, lambda: f"while Redis is away: {stand.left()}")
    finally:
        redis_server.go_on()
    left = stand.next_turn()
    matrix("trees", end="owner in doubt", why=stand.check(), children=len(WAYS), left=", ".join(left) or 0)
    assert (left, stand.check()) == ([], "owner-doubt")


@full
def test_who_scrubs_its_environment_outlives_a_killed_guard(sessiond: Start, matrix: Row) -> None:
    """As docs/architecture.md says: without a guard only the environment tells whose a process is."""
    service = sessiond(scripted_env())
    stand = Stand(service, SESSION)
    try:
        kill(stand.guard)
        stand.next_turn()
        left = set(stand.strays.found().values())
        matrix("trees", end="kill -9 of the guard", why=stand.check(), children=len(WAYS), left=", ".join(left))
        assert left == {"bare"}
    finally:
        stand.strays.end()
