"""Turns over HTTP with the scripted agent: keys, cancels, time, and the step between acceptance and write."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sessiond.client import Client, LeaseLost, ProblemError, Unavailable
from sessiond.verify import verify
from support.servers import Redis, Sessiond, eventually, scripted_env

SESSION = "octo/hello"
Start = Callable[..., Sessiond]


def closed(client: Client) -> list[dict[str, Any]]:
    return [e for e in client.ledger(SESSION) if e["event"] == "turn-closed"]


def test_the_key_of_a_completed_turn_returns_its_stored_result_under_a_new_fence(sessiond: Start) -> None:
    client = sessiond(scripted_env()).client()
    with client.lease(SESSION) as lease:
        first = lease.turn("hello\n#say one", key="t1").result()
    with client.lease(SESSION) as lease:
        again = lease.turn("hello\n#say one", key="t1").result()
        with pytest.raises(ProblemError, match="key-reused"):
            lease.turn("another prompt", key="t1")
        history = lease.turn("#history").result().text
    assert (first.outcome, first.text, again.turn, again.text) == ("completed", "one", first.turn, "one")
    assert history.count("hello") == 1
    assert client.turn_by_key(SESSION, "t1")["attempt"] == 1


def test_a_cancelled_turn_keeps_the_lease_and_runs_again_as_the_next_attempt(sessiond: Start) -> None:
    client = sessiond(scripted_env()).client()
    with client.lease(SESSION) as lease:
        turn = lease.turn("#tokens 1000\n#pace 10ms", key="t1")
        eventually(lambda: client.turn(SESSION, turn.id)["state"] == "started")
        with pytest.raises(ProblemError, match="turn-open"):
            lease.turn("other")
        client.transport.call("DELETE", f"/turns/{turn.id}", session=SESSION)
        assert turn.result().outcome == "cancelled"
        lease.check()
        assert lease.turn("#tokens 1000\n#pace 10ms", key="t1", timeout=1).result().reason == "timeout"
    assert client.turn_by_key(SESSION, "t1")["attempt"] == 2


def test_an_empty_result_is_not_a_completion(sessiond: Start) -> None:
    client = sessiond(scripted_env()).client()
    with client.lease(SESSION) as lease:
        result = lease.turn("#say").result()
    assert (result.outcome, result.reason) == ("failed", "empty-result")


def test_permissions_depend_on_the_kind_of_the_lease(sessiond: Start) -> None:
    client = sessiond(scripted_env()).client()
    prompt = '#ask Write {"file_path": "x.txt", "content": "x"}'
    with client.lease(SESSION, kind="handler") as lease:
        assert '"deny"' in lease.turn(prompt).result().text
    with client.lease(SESSION, kind="worker") as lease:
        assert '"allow"' in lease.turn(prompt).result().text
    with client.lease(SESSION, kind="handler") as lease:
        assert '"deny"' in lease.turn('#ask Read {"file_path": "/etc/passwd"}').result().text
        # claude reads inside the directory without asking. If it asks, the file is outside, for example behind a link.
        assert '"deny"' in lease.turn('#ask Read {"file_path": "src/main.py"}').result().text


@pytest.mark.parametrize("point", ["before-turn", f"{SESSION}/committed.turn-accepted"])
def test_the_start_of_a_turn_is_a_step_of_its_own(sessiond: Start, tmp_path: Path, point: str) -> None:
    """A handler's ticket comes between acceptance and write. The turn is refused unwritten, or runs and is drained."""
    hooks = tmp_path / "hooks"
    (hooks / SESSION).mkdir(parents=True)
    service = sessiond({**scripted_env(), "SESSIOND_HOOKS_DIR": str(hooks)})
    client, told = service.client(), []
    held = hooks / f"{point}.hold"

    def worker() -> None:
        with service.client().lease(SESSION, kind="worker", key="w") as lease:
            held.touch()
            try:
                told.append(lease.turn("the worker's prompt\n#tokens 1000\n#pace 10ms").result())
            except LeaseLost as lost:
                told.append(lost)

    thread = threading.Thread(target=worker)
    thread.start()
    eventually((hooks / f"{point}.reached").exists)
    taker = threading.Thread(target=lambda: service.client().take(SESSION, key="h"))
    taker.start()
    if point == "before-turn":
        taker.join()
    held.unlink()
    taker.join(10)
    thread.join(10)
    with client.lease(SESSION, key="h") as lease:
        history = lease.turn("#history").result().text
    entries = client.ledger(SESSION)
    assert verify(entries).violations == []
    if point == "before-turn":
        assert isinstance(told[0], LeaseLost) and told[0].reason == "preempted"
        assert "the worker's prompt" not in history
        assert not [e for e in entries if e["event"] == "turn-accepted" and e["kind"] == "worker"]
    else:
        assert (told[0].outcome, told[0].reason) == ("cancelled", "preempted")
        assert [e["outcome"] for e in entries if e["event"] == "turn-closed"] == ["cancelled", "completed"]


def test_turns_of_a_broken_agent_get_503_with_its_reason_and_tickets_keep_their_places(sessiond: Start) -> None:
    service = sessiond(scripted_env("exit-start=3"))
    client = service.client()
    with client.lease(SESSION) as lease:
        result = lease.turn("hello").result()
        assert result.outcome == "failed" and "exited with 3" in (result.reason or "")
        with pytest.raises(Unavailable) as refused:
            lease.turn("hello")
        assert refused.value.type == "agent-broken" and "exited with 3" in refused.value.reason
        lease.check()
        assert client.view(SESSION)["agent"]["state"] == "broken"


def test_an_idle_agent_sleeps_and_is_resumed_with_its_conversation(sessiond: Start) -> None:
    client = sessiond(scripted_env(idle=0.3)).client()
    with client.lease(SESSION) as lease:
        lease.turn("before it sleeps").result()
    eventually(lambda: client.view(SESSION)["agent"]["state"] == "asleep")
    with client.lease(SESSION) as lease:
        assert "before it sleeps" in lease.turn("#history").result().text


def test_at_most_max_agents_are_awake_and_the_longest_idle_one_is_stopped(sessiond: Start) -> None:
    client = sessiond({**scripted_env(), "SESSIOND_MAX_AGENTS": "2"}).client()
    for name in ("o/one", "o/two", "o/three", "o/one"):
        with client.lease(name) as lease:
            assert lease.turn(f"#say {name}").result().text == name
        awake = [v["session"] for v in client.sessions() if v["agent"]["state"] != "asleep"]
        assert len(awake) <= 2 and name in awake


def test_an_agent_that_is_stopped_while_it_waits_for_a_slot_stops_waiting(sessiond: Start) -> None:
    client = sessiond({**scripted_env(), "SESSIOND_MAX_AGENTS": "1"}).client()

    def second() -> str:
        with client.lease("o/two") as lease:
            return lease.turn("#say done").result().text

    with client.lease("o/one") as one, ThreadPoolExecutor(1) as pool:
        long = one.turn("#tokens 100000\n#pace 10ms")
        eventually(lambda: client.view("o/one")["agent"]["state"] == "in_turn")
        waiting = pool.submit(second)
        eventually(lambda: any(e["event"] == "agent-starting" for e in client.ledger("o/two")))
        client.restart_agent("o/two")
        try:
            eventually(lambda: any(e["event"] == "agent-reaped" for e in client.ledger("o/two")))
            assert client.view("o/one")["agent"]["state"] == "in_turn"
        finally:
            one.cancel_turn(long.id)
        assert waiting.result() == "done"


def test_waiting_for_a_slot_is_not_a_failure_of_the_agent(sessiond: Start) -> None:
    """Once a slot is free, the next turn runs, even after many failed waits."""
    client = sessiond({**scripted_env(start_deadline=0.6), "SESSIOND_MAX_AGENTS": "1"}).client()

    def second() -> None:
        with client.lease("o/two") as lease:
            for _ in range(4):
                result = lease.turn("#say waits").result()
                assert (result.outcome, result.reason) == ("failed", "start-deadline")
            over.set()
            eventually(lambda: lease.turn("#say through").result().text == "through", 30)

    over = threading.Event()
    with client.lease("o/one") as one, ThreadPoolExecutor(1) as pool:
        long = one.turn("#tokens 100000\n#pace 10ms")
        eventually(lambda: client.view("o/one")["agent"]["state"] == "in_turn")
        waiting = pool.submit(second)
        over.wait(30)
        one.cancel_turn(long.id)
        waiting.result()
        assert "agent-broken" not in [e["event"] for e in client.ledger("o/two")]


def test_a_turn_that_is_answered_from_its_key_claims_the_lease(sessiond: Start) -> None:
    client = sessiond(scripted_env(claim_window=0.5)).client()
    with client.lease(SESSION) as lease:
        lease.turn("#say once", key="k").result()
    place = client.take(SESSION, key="again")
    body = {"holder": "raw", "wait": 5}
    granted = client.transport.call("POST", f"/tickets/{place['id']}/wait", session=SESSION, body=body).body
    again, secret = {"prompt": "#say once", "key": "k"}, granted["lease"]["secret"]
    told = client.transport.stream("POST", "/turns", session=SESSION, body=again, secret=secret)
    assert [event.event for event in told if event is not None] == ["result"]
    assert [e["event"] for e in client.ledger(SESSION)].count("claimed") == 2


def test_a_full_queue_is_an_error_and_does_not_wrap(sessiond: Start, redis_server: Redis) -> None:
    import redis as redis_library

    service = sessiond(scripted_env())
    service.client().take(SESSION)
    service.terminate()
    redis_library.Redis.from_url(redis_server.url).hset(f"sessiond:{{{SESSION}}}:meta", "arrivals", 2**42 - 1)
    service.start()
    with pytest.raises(Unavailable) as refused:
        service.client().take(SESSION)
    assert (refused.value.type, refused.value.status) == ("queue-full", 503)


def test_an_interrupt_of_claudes_own_turn_does_not_count_for_the_waiting_turn(sessiond: Start) -> None:
    """Otherwise the time would be measured from that interrupt, and a long turn would seem to take hours to end."""
    service = sessiond(scripted_env())
    client, place = service.client(), service.state / "work" / SESSION
    place.mkdir(parents=True)
    (place / "faults").write_text("at initialized state=running sleep=200 state=idle")
    with client.lease(SESSION) as lease:
        assert lease.turn("#say one").result().completed
    assert [e["event"] for e in client.ledger(SESSION) if e["event"] in ("foreign", "interrupt")] == ["foreign"]
    assert [e.get("interrupt_to_closed_ms") for e in closed(client)] == [None]
