"""Redis is restarted, paused or killed. No lock has two holders, no place is lost, and open turns get their results."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sessiond.client import Client, Unavailable
from sessiond.lock.rules import Times
from sessiond.verify import verify
from support.servers import Redis, Sessiond, eventually, scripted_env

SESSION = "octo/hello"
Start = Callable[..., Sessiond]


class Scene:
    """A lease with an open turn, and two handlers that wait behind it."""

    def __init__(self, service: Sessiond, prompt: str) -> None:
        self.service, self.client = service, service.client()
        self.results: list[Any] = []
        self.granted: list[str] = []
        self.lease = self.client.lease(SESSION, key="holder")
        held = self.lease.__enter__()
        turn = held.turn(prompt)
        self.reader = threading.Thread(target=lambda: self.results.append(turn.result()))
        self.reader.start()
        eventually(lambda: self.client.turn(SESSION, turn.id)["state"] == "started")
        for name in ("b", "c"):
            self.client.take(SESSION, key=name)
        self.waiters = [threading.Thread(target=self.wait, args=(name,)) for name in ("b", "c")]
        for waiter in self.waiters:
            waiter.start()
        eventually(lambda: all(t["present"] for t in self.client.view(SESSION)["queue"]))

    def wait(self, name: str) -> None:
        with self.service.client().lease(SESSION, key=name):
            self.granted.append(name)

    def end(self) -> list[dict[str, Any]]:
        """Let each waiter get the lock in order. Return the ledger."""
        self.reader.join(30)
        self.lease.__exit__(None, None, None)
        for waiter in self.waiters:
            waiter.join(40)
        assert self.granted == ["b", "c"]
        entries = self.client.ledger(SESSION)
        assert verify(entries).violations == []
        steps = [(e["version"], e["event"], e.get("ticket"), e.get("fence")) for e in entries]
        assert len(steps) == len(set(steps)), "a step was applied twice"
        return entries


def refused(client: Client) -> Unavailable:
    with pytest.raises(Unavailable) as caught:
        client.take(SESSION, key="while-away")
    return caught.value


def ready(service: Sessiond) -> None:
    eventually(service.ready, 20)


def test_a_turn_completes_when_redis_restarts(sessiond: Start, redis_server: Redis) -> None:
    scene = Scene(sessiond(scripted_env()), "#tokens 100\n#pace 10ms\n#say through")
    redis_server.restart()
    ready(scene.service)
    scene.end()
    assert [(r.outcome, r.text) for r in scene.results] == [("completed", "through")]


def test_a_turn_completes_when_redis_is_killed_and_started_again(sessiond: Start, redis_server: Redis) -> None:
    scene = Scene(sessiond(scripted_env()), "#tokens 150\n#pace 10ms\n#say through")
    redis_server.kill9()
    problem = eventually(lambda: refused(scene.client))
    assert (problem.type, problem.status, problem.retry_after) == ("redis-away", 503, 1.0)
    redis_server.start()
    ready(scene.service)
    scene.end()
    assert [(r.outcome, r.text) for r in scene.results] == [("completed", "through")]


@pytest.mark.long
def test_a_turn_completes_when_redis_is_paused_for_12_seconds(sessiond: Start, redis_server: Redis) -> None:
    """A result that arrives while Redis is away is kept, committed when Redis is back, and then returned."""
    scene = Scene(sessiond(scripted_env()), "#tokens 150\n#pace 10ms\n#say through")
    redis_server.pause()
    stopped = threading.Timer(12, redis_server.resume)
    stopped.start()
    assert refused(scene.client).retry_after is not None
    stopped.join()
    ready(scene.service)
    scene.end()
    assert [(r.outcome, r.text) for r in scene.results] == [("completed", "through")]


def test_an_owner_in_doubt_ends_its_agent(sessiond: Start, redis_server: Redis) -> None:
    service = sessiond(scripted_env(owner_doubt=1.5, owner_renew=0.5))
    scene = Scene(service, "#tokens 100000\n#pace 10ms")
    pid = scene.client.view(SESSION)["agent"]["pid"]
    service.remember()
    redis_server.pause()
    eventually(lambda: pid not in [p.pid for p in service.left()], 12, "the agent is ended")
    redis_server.resume()
    ready(service)
    scene.end()
    assert [r.outcome for r in scene.results] == ["lost"]


@pytest.mark.long
def test_every_owner_in_doubt_ends_its_agent_before_another_may_own_the_session(
    sessiond: Start, redis_server: Redis
) -> None:
    """This also holds with many sessions: no session waits for another session's call to Redis."""
    service = sessiond(scripted_env())
    client, names = service.client(), [f"o/{number}" for number in range(6)]

    def work(name: str) -> str:
        with client.lease(name, kind="worker") as lease:
            return lease.turn("#at text silent\n#say never").result().outcome

    with ThreadPoolExecutor(len(names)) as pool:
        outcomes = pool.map(work, names)
        eventually(lambda: all(client.view(name)["agent"]["state"] == "in_turn" for name in names), 20)
        pids = {client.view(name)["agent"]["pid"] for name in names}
        service.remember()
        redis_server.pause()
        paused = time.monotonic()
        eventually(lambda: not pids & {p.pid for p in service.left()}, 40, "the agents are ended")
        took = time.monotonic() - paused
        redis_server.resume()
        assert set(outcomes) == {"lost"}
    assert took < Times().owner_ttl


def test_a_wait_that_ends_as_redis_goes_away_is_answered(sessiond: Start, redis_server: Redis) -> None:
    """After a restart of the owner during a handler's lease, even a step without changes is stored."""
    service = sessiond(scripted_env())
    client = service.client()
    post = partial(client.transport.call, "POST", session=SESSION)
    held = client.take(SESSION, key="held")["id"]
    granted = post(f"/tickets/{held}/wait", body={"holder": "holds", "wait": 5}).body
    post("/lease/renew", secret=granted["lease"]["secret"])
    service.kill9()
    service.start()
    place = client.take(SESSION, key="waits")["id"]
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(post, f"/tickets/{place}/wait", body={"holder": "waits", "wait": 3}, timeout=30)
        eventually(lambda: any(t["key"] == "waits" and t["present"] for t in client.view(SESSION)["queue"]))
        redis_server.pause()
        try:
            error = told.exception(40)
        finally:
            redis_server.resume()
    assert isinstance(error, Unavailable) and error.type == "redis-away"
    ready(service)


def test_the_owner_writes_its_state_back_to_a_redis_that_lost_everything(sessiond: Start, redis_server: Redis) -> None:
    import redis as redis_library

    service = sessiond(scripted_env())
    client = service.client()
    with client.lease(SESSION, key="holder"):
        client.take(SESSION, key="b")
        redis_library.Redis.from_url(redis_server.url).flushall()
        assert client.take(SESSION, key="c")["position"] == 2
        assert [t["key"] for t in client.view(SESSION)["queue"]] == ["b", "c"]
        assert "restored" in [e["event"] for e in client.ledger(SESSION)]
    for key in ("b", "c"):
        with client.lease(SESSION, key=key) as lease:
            lease.check()


def test_a_ticket_without_a_key_that_was_taken_in_an_outage_is_withdrawn(sessiond: Start, redis_server: Redis) -> None:
    """Its caller was refused and does not know the ticket. It would block the worker for `absence`."""
    service = sessiond(scripted_env())
    client = service.client()
    with client.lease(SESSION):
        pass
    redis_server.pause()
    with ThreadPoolExecutor(1) as pool:
        refused = pool.submit(client.transport.call, "POST", "/tickets", session=SESSION, body={"kind": "handler"})
        with pytest.raises(Unavailable, match="redis-away"):
            refused.result(60)
    redis_server.resume()
    with client.lease(SESSION, key="next"):
        assert client.view(SESSION)["queue"] == []
    events = [e["event"] for e in client.ledger(SESSION)]
    assert events.count("taken") == 3, "the step was applied, although its caller was refused"


def test_callers_of_new_sessions_do_not_wait_for_each_other_in_an_outage(sessiond: Start, redis_server: Redis) -> None:
    """The callers do not wait for each other. In sequence, each of the eight would add 4 s."""
    service, body = sessiond(scripted_env()), {"kind": "handler", "key": "k"}

    def ask(_: int) -> float:
        began = time.monotonic()
        with pytest.raises(Unavailable):
            service.client().transport.call("POST", "/tickets", session="octo/new", body=body, timeout=100)
        return time.monotonic() - began

    redis_server.pause()
    with ThreadPoolExecutor(8) as pool:
        took = list(pool.map(ask, range(8)))
    redis_server.resume()
    assert max(took) < 2 * min(took) + 2


def test_callers_are_answered_when_redis_fails_during_a_takeover(
    sessiond: Start, redis_server: Redis, tmp_path: Path
) -> None:
    hold = tmp_path / "octo" / "new" / "decided.epoch.hold"
    hold.parent.mkdir(parents=True)
    hold.touch()
    service = sessiond(scripted_env() | {"SESSIOND_HOOKS_DIR": str(tmp_path)})
    body = {"kind": "handler", "key": "k"}
    with ThreadPoolExecutor(3) as pool:
        call = partial(service.client().transport.call, "POST", "/tickets", session="octo/new", body=body, timeout=100)
        asked = [pool.submit(call) for _ in range(3)]
        eventually(hold.with_suffix(".reached").exists, 30)
        redis_server.kill9()
        hold.unlink()
        for one in asked:  # answered during the outage
            with pytest.raises(Unavailable):
                one.result(60)
    redis_server.start()
    with service.client().lease("octo/new", key="k"):
        pass
