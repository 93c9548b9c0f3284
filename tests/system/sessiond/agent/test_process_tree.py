"""Whatever ends an agent's process ends all of its tree, and nobody starts the next one before.

Each worker's turn has a tool that leaves a process behind in every way (tests/strays.py). Here with the scripted agent;
the real one is in tests/real/test_tree.py.
"""

import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import redis as redis_library

from support.agent.agent_tree import Stand
from support.agent.strays import WAYS
from support.servers import Redis, Sessiond, alive, eventually, scripted_env
from support.size import FULL

SESSION = "octo/hello"
LONG = "#tokens 100000\n#pace 10ms"
Start = Callable[..., Sessiond]
Row = Callable[..., None]
full = pytest.mark.skipif(not FULL, reason="of the full form")


def spawning(prompt: str) -> Callable[[str], str]:
    """The scripted agent's way to a tool: it is started, and the turn goes on as `prompt` says."""
    return lambda command: f"#spawn {command}\n{prompt}"


def judge(matrix: Row, end: str, stand: Stand, left: list[str], expected: str) -> None:
    """A row of the table; nothing was `left` when the next agent had answered, and `expected` is why."""
    why = stand.check()
    matrix("trees", end=end, why=why, children=len(stand.strays.ways), left=", ".join(left) or 0)
    assert (left, why) == ([], expected), end


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


def preempted_and_forced(stand: Stand) -> None:
    """The turn is cancelled by the second, though its lease has ended by the first."""
    fence = stand.fence
    stand.client.take(stand.session, key="next")
    stand.until_draining()
    stand.client.force_release(stand.session, fence, "the test's")


def expired(stand: Stand) -> None:
    eventually(lambda: any(e["reason"] == "expired" for e in stand.events("ended")), 20)


def restarted(stand: Stand) -> None:
    stand.client.restart_agent(stand.session)


def stopped_guard(stand: Stand) -> None:
    """It is asked to end its tree, and cannot hear."""
    os.kill(stand.guard, signal.SIGSTOP)
    stand.client.restart_agent(stand.session)
    eventually(lambda: stand.events("agent-killed"), 20)


def afresh(stand: Stand) -> None:
    stand.until_turn_over()
    stand.client.new_conversation(stand.session)


def released(stand: Stand) -> None:
    stand.until_turn_over()
    stand.leave()


WITHOUT_BARE = tuple(way for way in WAYS if way != "bare")
ENDS: dict[str, tuple[Callable[[Stand], None], str, str]] = {
    "an interrupt is ignored": (nothing, f"#fault ignore-interrupt\n{LONG}", "drain-deadline"),
    "the turn does not close": (nothing, "#fault no-close", "drain-deadline"),
    "garbage": (nothing, f"#at interrupt raw=garbage\n{LONG}", "garbage"),
    "forced in a turn": (forced, f"#fault ignore-interrupt\n{LONG}", "drain-deadline"),
    "forced in a turn, and it closes": (forced, LONG, "strays"),
    "forced in draining": (forced_in_draining, f"#fault ignore-interrupt\n{LONG}", "forced"),
    "preempted, and forced in draining": (preempted_and_forced, f"#fault ignore-interrupt\n{LONG}", "forced"),
    "the lease expires": (expired, f"#fault ignore-interrupt\n{LONG}", "drain-deadline"),
    "kill -9 of the guard": (Stand.kill_guard, LONG, "died"),
    "kill -9 of the agent": (Stand.kill_agent, LONG, "died"),
    "restart": (restarted, LONG, "restart"),
    "restart, and the guard is stopped": (stopped_guard, LONG, "restart"),
    "a fresh conversation": (afresh, "#say done", "conversation"),
    "released after its turn": (released, "#say done", "strays"),
}


def test_the_tree_is_gone_before_the_next_agent(sessiond: Start, matrix: Row) -> None:
    times = {"drain_deadline": 8.0, "lease_ttl": 4.0}
    service = sessiond({**scripted_env(**times), "SESSIOND_MAX_AGENTS": str(len(ENDS))})

    def run(name: str) -> tuple[str, Stand, list[str]]:
        end, prompt, _ = ENDS[name]
        # Found by its environment once its guard was killed: who has none is not.
        ways = WITHOUT_BARE if end == Stand.kill_guard else tuple(WAYS)
        ttl = 30.0 if end is expired else 4.0
        stand = Stand(service, f"octo/{list(ENDS).index(name)}", spawning(prompt), ways, ttl)
        end(stand)
        return name, stand, stand.next_turn()

    with ThreadPoolExecutor(len(ENDS)) as pool:
        for name, stand, left in pool.map(run, ENDS):
            judge(matrix, name, stand, left, ENDS[name][2])


# ---- ends of a process whose tree was there from its start on ------------------------------------


def itself(stand: Stand) -> None:
    """It goes on as it was told, and that ends it, nobody else having asked for anything."""
    (stand.place / "go").touch()
    eventually(lambda: stand.events("agent-reaped"), 30)


def broken(stand: Stand) -> None:
    """And it is not started again before an operator says so."""
    itself(stand)
    eventually(lambda: stand.events("agent-broken"), 20)
    stand.client.restart_agent(stand.session)


FROM_ITS_START: dict[str, tuple[Callable[[Stand], None], str, str, str]] = {
    "initialize is not answered": (itself, "until=never", "#say late", "start-deadline"),
    "initialize is refused": (itself, "fault=refuse=initialize", "#say again", "initialize-refused"),
    "its rules are refused": (itself, "fault=refuse=apply_flag_settings", "#say never", "rules-refused"),
    "a prompt is not taken": (itself, "", "#fault no-lifecycle", "not-taken"),
    "a turn does not start": (itself, "", "#at queued silent", "start-deadline"),
    "stdin is not read": (itself, "fault=deaf=3", "#at text raw=requests silent", "stdin-full"),
    "a capability is missing": (broken, "fault=no-capability", "#say never", "missing-capability"),
    "no login": (broken, "", "#fail Invalid API key", "no-login"),
    "it exits in its turn": (itself, "", "#fault exit-turn=0", "died"),
}
"""What happens, what it does once `go` is there, its prompt, why it was ended."""


def started_with(service: Sessiond, session: str, moment: str, prompt: str) -> Callable[[str], str]:
    """The scripted agent's way to start a tool at a moment of the process, not of the turn."""

    def begins(command: str) -> str:
        place = service.state / "work" / session
        place.mkdir(parents=True)
        (place / "spawn").write_text(command)
        (place / "faults").write_text(f"at {moment}")
        return prompt

    return begins


def test_a_tree_from_the_start_on_is_gone_before_the_next_agent(sessiond: Start, matrix: Row) -> None:
    """Nobody looks for it before the lease's end: nothing but the process's own end takes it away."""
    service = sessiond({**scripted_env(start_deadline=15.0), "SESSIOND_MAX_AGENTS": str(len(FROM_ITS_START))})

    def run(name: str) -> tuple[str, Stand, list[str]]:
        end, then, prompt, _ = FROM_ITS_START[name]
        session = f"octo/{name.replace(' ', '-')}"
        begins = started_with(service, session, f"start spawn until=go {then}", prompt)
        stand = Stand(service, session, begins, until="agent-started")
        end(stand)
        return name, stand, stand.next_turn()

    with ThreadPoolExecutor(len(FROM_ITS_START)) as pool:
        for name, stand, left in pool.map(run, FROM_ITS_START):
            judge(matrix, name, stand, left, FROM_ITS_START[name][3])


def test_a_tree_that_came_unseen_is_gone_with_an_agent_put_to_sleep(sessiond: Start, matrix: Row) -> None:
    """What is seen keeps it awake; this came after the last look."""
    service = sessiond(scripted_env(idle=3.0))
    begins = started_with(service, SESSION, "fenced until=go spawn", "#say done")
    ledger, place = service.client().ledger, service.state / "work" / SESSION
    with ThreadPoolExecutor(1) as pool:
        standing = pool.submit(Stand, service, SESSION, begins)
        eventually(lambda: any(e["event"] == "turn-closed" for e in ledger(SESSION)), 20)
        (place / "go").touch()
        stand = standing.result()
    eventually(lambda: stand.events("agent-reaped"), 20)
    judge(matrix, "sleep", stand, stand.next_turn(), "sleep")


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


def test_a_guard_that_redis_forgot_is_waited_for(
    sessiond: Start, redis_server: Redis, tmp_path: Path, matrix: Row
) -> None:
    """Redis comes back older than the agent, to a sessiond that knows nothing either; and the guard stands still."""
    service = sessiond(scripted_env())
    with service.client().lease(SESSION):
        redis_server.copy(tmp_path / "older")
    stand = Stand(service, SESSION, spawning(LONG), WITHOUT_BARE)
    os.kill(stand.guard, signal.SIGSTOP)
    service.kill9()
    redis_server.kill9()
    redis_server.put_back(tmp_path / "older")
    redis_server.start()
    service.start()
    assert not stand.events("agent-started"), "Redis knows nothing of it"
    judge(matrix, "forgotten by Redis", stand, stand.next_turn(), "owner-restart")


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
    stand = Stand(service, SESSION, spawning(LONG), ways)
    end(service, stand)
    judge(matrix, request.node.callspec.id, stand, stand.next_turn(), why)


# ---- an owner that no longer is one -------------------------------------------------------------


@full
def test_a_deposed_owners_tree_is_gone_before_its_successors_agent(
    sessiond: Start, redis_server: Redis, matrix: Row
) -> None:
    """It stood still for so long that another took the session; that one waits for the guard all the same."""
    times = {"owner_ttl": 1.5, "owner_renew": 0.3}
    first, second = sessiond(scripted_env(**times), name="a"), sessiond(scripted_env(**times), name="b")
    stand = Stand(first, SESSION, spawning(LONG))
    worker = worker_of(first)
    worker.suspend()
    try:
        meta = redis_library.Redis.from_url(redis_server.url, decode_responses=True)
        eventually(lambda: meta.hget(f"sessiond:{{{SESSION}}}:meta", "url") == second.url, 20)
        assert set(stand.strays.found().values()) == set(WAYS), "the owner that stands still has its tree still"
    finally:
        worker.resume()
    stand.service, stand.client = second, second.client()
    judge(matrix, "deposed", stand, stand.next_turn(), "owner-restart")


@full
def test_an_owner_in_doubt_ends_its_tree(sessiond: Start, redis_server: Redis, matrix: Row) -> None:
    service = sessiond(scripted_env(owner_doubt=1.0, owner_renew=0.3))
    stand = Stand(service, SESSION, spawning(LONG))
    redis_server.pause()
    try:
        eventually(lambda: not stand.left(), 30, lambda: f"while Redis is away: {stand.left()}")
    finally:
        redis_server.go_on()
    judge(matrix, "owner in doubt", stand, stand.next_turn(), "owner-doubt")


@full
def test_who_scrubs_its_environment_outlives_a_killed_guard(sessiond: Start, matrix: Row) -> None:
    """As docs/architecture.md says: without a guard only the environment tells whose a process is."""
    service = sessiond(scripted_env())
    stand = Stand(service, SESSION, spawning(LONG))
    try:
        stand.kill_guard()
        stand.next_turn()
        left = set(stand.strays.found().values())
        matrix("trees", end="kill -9 of the guard", why=stand.check(), children=len(WAYS), left=", ".join(left))
        assert left == {"bare"}
    finally:
        stand.strays.end()
