"""Every end of an agent's process ends its whole tree, and the next agent does not start earlier.

Each worker's turn runs a tool that leaves processes behind in many ways (support/agent/strays.py). These tests use
the scripted agent; tests/system/claude/test_process_tree.py uses the real one.
"""

import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import redis as redis_library

from support.agent.agent_tree import TreeScene
from support.agent.strays import WAYS
from support.servers import Redis, Sessiond, alive, eventually, scripted_env
from support.size import FULL

SESSION = "octo/hello"
LONG = "#tokens 100000\n#pace 10ms"
Start = Callable[..., Sessiond]
Row = Callable[..., None]
full = pytest.mark.skipif(not FULL, reason="of the full form")


def spawning(prompt: str) -> Callable[[str], str]:
    """Return a prompt factory: the scripted agent starts the tool, then continues as `prompt` says."""
    return lambda command: f"#spawn {command}\n{prompt}"


def judge(matrix: Row, end: str, scene: TreeScene, left: list[str], expected: str) -> None:
    """Add a row to the table. Check that no process was `left` at the next agent's answer, and the reason's value."""
    why = scene.check()
    matrix("trees", end=end, why=why, children=len(scene.strays.ways), left=", ".join(left) or 0)
    assert (left, why) == ([], expected), end


# ---- the agent ends, the service continues -----------------------------------------------------


def nothing(scene: TreeScene) -> None:
    """Do nothing: the next handler's ticket ends the turn."""


def forced(scene: TreeScene) -> None:
    scene.client.force_release(scene.session, scene.fence, "the test's")
    scene.until_draining()


def forced_in_draining(scene: TreeScene) -> None:
    fence = scene.fence
    scene.client.force_release(scene.session, fence, "the test's")
    scene.until_draining()
    scene.client.force_release(scene.session, fence, "the test's, once more")


def preempted_and_forced(scene: TreeScene) -> None:
    """Preempt the lease and then force its release. The force cancels the turn although the lease has already ended."""
    fence = scene.fence
    scene.client.take(scene.session, key="next")
    scene.until_draining()
    scene.client.force_release(scene.session, fence, "the test's")


def expired(scene: TreeScene) -> None:
    eventually(lambda: any(e["reason"] == "expired" for e in scene.events("ended")), 20)


def restarted(scene: TreeScene) -> None:
    scene.client.restart_agent(scene.session)


def stopped_guard(scene: TreeScene) -> None:
    """Ask a stopped guard to end its tree."""
    os.kill(scene.guard, signal.SIGSTOP)
    scene.client.restart_agent(scene.session)
    eventually(lambda: scene.events("agent-killed"), 20)


def afresh(scene: TreeScene) -> None:
    scene.until_turn_over()
    scene.client.new_conversation(scene.session)


def released(scene: TreeScene) -> None:
    scene.until_turn_over()
    scene.leave()


WITHOUT_BARE = tuple(way for way in WAYS if way != "bare")
ENDS: dict[str, tuple[Callable[[TreeScene], None], str, str]] = {
    "an interrupt is ignored": (nothing, f"#fault ignore-interrupt\n{LONG}", "drain-deadline"),
    "the turn does not close": (nothing, "#fault no-close", "drain-deadline"),
    "garbage": (nothing, f"#at interrupt raw=garbage\n{LONG}", "garbage"),
    "forced in a turn": (forced, f"#fault ignore-interrupt\n{LONG}", "drain-deadline"),
    "forced in a turn, and it closes": (forced, LONG, "strays"),
    "forced in draining": (forced_in_draining, f"#fault ignore-interrupt\n{LONG}", "forced"),
    "preempted, and forced in draining": (preempted_and_forced, f"#fault ignore-interrupt\n{LONG}", "forced"),
    "the lease expires": (expired, f"#fault ignore-interrupt\n{LONG}", "drain-deadline"),
    "kill -9 of the guard": (TreeScene.kill_guard, LONG, "died"),
    "kill -9 of the agent": (TreeScene.kill_agent, LONG, "died"),
    "restart": (restarted, LONG, "restart"),
    "restart, and the guard is stopped": (stopped_guard, LONG, "restart"),
    "a fresh conversation": (afresh, "#say done", "conversation"),
    "released after its turn": (released, "#say done", "strays"),
}


def test_the_tree_is_gone_before_the_next_agent_starts(sessiond: Start, matrix: Row) -> None:
    times = {"drain_deadline": 8.0, "lease_ttl": 4.0}
    service = sessiond({**scripted_env(**times), "SESSIOND_MAX_AGENTS": str(len(ENDS))})

    def run(name: str) -> tuple[str, TreeScene, list[str]]:
        end, prompt, _ = ENDS[name]
        # After its guard is killed, a process is found by its environment, so one without environment is not found.
        ways = WITHOUT_BARE if end == TreeScene.kill_guard else tuple(WAYS)
        ttl = 30.0 if end is expired else 4.0
        scene = TreeScene(service, f"octo/{list(ENDS).index(name)}", spawning(prompt), ways, ttl)
        end(scene)
        return name, scene, scene.next_turn()

    with ThreadPoolExecutor(len(ENDS)) as pool:
        for name, scene, left in pool.map(run, ENDS):
            judge(matrix, name, scene, left, ENDS[name][2])


# ---- the process ends, and its tree existed from its start on ------------------------------------


def itself(scene: TreeScene) -> None:
    """Let the agent continue. Its own fault then ends it."""
    (scene.place / "go").touch()
    eventually(lambda: scene.events("agent-reaped"), 30)


def broken(scene: TreeScene) -> None:
    """Like `itself`, but the agent starts again only after an operator's restart."""
    itself(scene)
    eventually(lambda: scene.events("agent-broken"), 20)
    scene.client.restart_agent(scene.session)


FROM_ITS_START: dict[str, tuple[Callable[[TreeScene], None], str, str, str]] = {
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
"""The end, the agent's actions when the file `go` exists, its prompt, and the expected reason."""


def started_with(service: Sessiond, session: str, moment: str, prompt: str) -> Callable[[str], str]:
    """Return a prompt factory that starts the tool at a moment of the process instead of the turn."""

    def begins(command: str) -> str:
        place = service.state / "work" / session
        place.mkdir(parents=True)
        (place / "spawn").write_text(command)
        (place / "faults").write_text(f"at {moment}")
        return prompt

    return begins


def test_a_tree_that_existed_from_the_start_is_gone_before_the_next_agent_starts(sessiond: Start, matrix: Row) -> None:
    """sessiond searches for strays only after the end of the lease, so only the end of the process removes the tree."""
    service = sessiond({**scripted_env(start_deadline=15.0), "SESSIOND_MAX_AGENTS": str(len(FROM_ITS_START))})

    def run(name: str) -> tuple[str, TreeScene, list[str]]:
        end, then, prompt, _ = FROM_ITS_START[name]
        session = f"octo/{name.replace(' ', '-')}"
        begins = started_with(service, session, f"start spawn until=go {then}", prompt)
        scene = TreeScene(service, session, begins, until="agent-started")
        end(scene)
        return name, scene, scene.next_turn()

    with ThreadPoolExecutor(len(FROM_ITS_START)) as pool:
        for name, scene, left in pool.map(run, FROM_ITS_START):
            judge(matrix, name, scene, left, FROM_ITS_START[name][3])


def test_strays_started_after_the_last_look_end_when_the_agent_sleeps(sessiond: Start, matrix: Row) -> None:
    """Strays that are found keep the agent awake. These start after the last examination."""
    service = sessiond(scripted_env(idle=3.0))
    begins = started_with(service, SESSION, "fenced until=go spawn", "#say done")
    ledger, place = service.client().ledger, service.state / "work" / SESSION
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(TreeScene, service, SESSION, begins)
        eventually(lambda: any(e["event"] == "turn-closed" for e in ledger(SESSION)), 20)
        (place / "go").touch()
        scene = starting.result()
    eventually(lambda: scene.events("agent-reaped"), 20)
    judge(matrix, "sleep", scene, scene.next_turn(), "sleep")


# ---- the service ends ----------------------------------------------------------------------------


def worker_of(service: Sessiond) -> psutil.Process:
    (worker,) = psutil.Process(service.pid).children()
    return worker


def kill(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def sigterm(service: Sessiond, scene: TreeScene) -> None:
    service.terminate()
    assert scene.left() == [], "no process may outlive a service that ends by itself"
    service.start()


def worker_killed(service: Sessiond, scene: TreeScene) -> None:
    worker_of(service).kill()


def master_killed(service: Sessiond, scene: TreeScene) -> None:
    service.remember()
    worker = worker_of(service)
    kill(service.pid)
    service.reap()
    eventually(lambda: not alive(worker), 20, "the worker sees that its master is gone")
    service.start()


def both_killed(service: Sessiond, scene: TreeScene) -> None:
    service.kill9()
    eventually(lambda: not scene.left(), 5, lambda: f"the guard ends its tree: {scene.left()}")
    service.start()


def guard_and_both_killed(service: Sessiond, scene: TreeScene) -> None:
    kill(scene.guard)
    service.kill9()
    service.start()


def test_the_next_agent_waits_for_a_guard_that_redis_lost(
    sessiond: Start, redis_server: Redis, tmp_path: Path, matrix: Row
) -> None:
    """Redis returns with data older than the agent, sessiond has restarted, and the guard is suspended."""
    service = sessiond(scripted_env())
    with service.client().lease(SESSION):
        redis_server.copy(tmp_path / "older")
    scene = TreeScene(service, SESSION, spawning(LONG), WITHOUT_BARE)
    os.kill(scene.guard, signal.SIGSTOP)
    service.kill9()
    redis_server.kill9()
    redis_server.restore_data(tmp_path / "older")
    redis_server.start()
    service.start()
    assert not scene.events("agent-started"), "Redis has no record of the agent"
    judge(matrix, "forgotten by Redis", scene, scene.next_turn(), "owner-restart")


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
    scene = TreeScene(service, SESSION, spawning(LONG), ways)
    end(service, scene)
    judge(matrix, request.node.callspec.id, scene, scene.next_turn(), why)


# ---- a deposed owner -----------------------------------------------------------------------------


@full
def test_the_tree_of_a_deposed_owner_is_gone_before_its_successor_starts_an_agent(
    sessiond: Start, redis_server: Redis, matrix: Row
) -> None:
    """A suspended owner loses the session to another one, which still waits for the old guard."""
    times = {"owner_ttl": 1.5, "owner_renew": 0.3}
    first, second = sessiond(scripted_env(**times), name="a"), sessiond(scripted_env(**times), name="b")
    scene = TreeScene(first, SESSION, spawning(LONG))
    worker = worker_of(first)
    worker.suspend()
    try:
        meta = redis_library.Redis.from_url(redis_server.url, decode_responses=True)

        def taken_over() -> bool:
            """Look at the tree first: the second owner ends it as soon as the session is its own."""
            found = set(scene.strays.found().values())
            if meta.hget(f"sessiond:{{{SESSION}}}:meta", "url") == second.url:
                return True
            assert found == set(WAYS), "the suspended owner still has its tree"
            return False

        eventually(taken_over, 20)
    finally:
        worker.resume()
    scene.service, scene.client = second, second.client()
    judge(matrix, "deposed", scene, scene.next_turn(), "owner-restart")


@full
def test_an_owner_in_doubt_ends_its_tree(sessiond: Start, redis_server: Redis, matrix: Row) -> None:
    service = sessiond(scripted_env(owner_doubt=1.0, owner_renew=0.3))
    scene = TreeScene(service, SESSION, spawning(LONG))
    redis_server.pause()
    try:
        eventually(lambda: not scene.left(), 30, lambda: f"while Redis is away: {scene.left()}")
    finally:
        redis_server.resume()
    judge(matrix, "owner in doubt", scene, scene.next_turn(), "owner-doubt")


@full
def test_a_process_without_environment_outlives_a_killed_guard(sessiond: Start, matrix: Row) -> None:
    """Without a guard, only the environment identifies a process (docs/concepts/agent.md)."""
    service = sessiond(scripted_env())
    scene = TreeScene(service, SESSION, spawning(LONG))
    try:
        scene.kill_guard()
        scene.next_turn()
        left = set(scene.strays.found().values())
        matrix("trees", end="kill -9 of the guard", why=scene.check(), children=len(WAYS), left=", ".join(left))
        assert left == {"bare"}
    finally:
        scene.strays.end()
