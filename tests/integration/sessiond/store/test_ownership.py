"""Two sessionds on one Redis, and one that restarts after kill -9."""

import contextlib
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gevent
import psutil
import pytest
import redis as redis_library
import urllib3

from sessiond.client import NotOwner, ProblemError, Unavailable
from sessiond.lock.rules import Times
from sessiond.session.agent.slots import Slots
from sessiond.session.loop import Session
from sessiond.settings import Settings
from sessiond.store.ownership import Instance, OwnershipStore
from sessiond.store.store import Deposed, Store
from sessiond.verify import verify
from support.servers import Redis, Sessiond, eventually, scripted_env
from support.session.crash_scenes import Scene

SESSION = "octo/hello"
Start = Callable[..., Sessiond]


def test_another_instance_answers_421_with_the_owners_url_and_the_client_follows(sessiond: Start) -> None:
    first, second = sessiond(scripted_env(), name="a"), sessiond(scripted_env(), name="b")
    with first.client().lease(SESSION) as lease:
        epoch = first.client().view(SESSION)["epoch"]
        answer = urllib3.request(
            "GET", f"{second.url}/v1/sessions/{SESSION}", headers={"Authorization": "Bearer admin-key"}, retries=False
        )
        assert (answer.status, answer.json()["type"], answer.json()["owner_url"]) == (421, "not-owner", first.url)
        followed = second.client().view(SESSION)
        assert (followed["owner"]["url"], followed["epoch"]) == (first.url, epoch)
        lease.check()


def test_a_second_421_is_not_followed(redis_server: Redis, sessiond: Start) -> None:
    first, second = sessiond(scripted_env(), name="a"), sessiond(scripted_env(), name="b")
    place = first.client().take(SESSION, key="k")["id"]

    def named(url: str) -> None:
        with redis_library.Redis.from_url(redis_server.url) as redis:
            redis.hset(f"sessiond:{{{SESSION}}}:meta", "url", url)

    named(second.url)  # the record names an instance that does not own the session

    def refused() -> float:
        found = urllib3.request("GET", f"{second.url}/metrics", retries=False).data.decode()
        lines = [line for line in found.splitlines() if "requests_total" in line and 'status="421"' in line]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    with pytest.raises(NotOwner) as caught:
        second.client().view(SESSION)
    assert caught.value.owner_url == second.url
    assert refused() == 2, "the client calls once, follows once and gives up"
    with ThreadPoolExecutor(1) as pool:
        patient = pool.submit(second.client().take, SESSION, key="k", patience=30)
        eventually(lambda: refused() >= 6, 20, "who has the patience asks again")
        named(first.url)
        assert patient.result()["id"] == place


def test_a_stopped_owner_is_followed_at_once(sessiond: Start) -> None:
    first, second = sessiond(scripted_env(), name="a"), sessiond(scripted_env(), name="b")
    place = first.client().take(SESSION, key="k")["id"]
    first.terminate()
    taken_over = second.client().view(SESSION)
    assert taken_over["owner"]["url"] == second.url
    assert [t["id"] for t in taken_over["queue"]] == [place]


def test_an_owner_that_stops_releases_every_session_even_while_it_renews(sessiond: Start, redis_server: Redis) -> None:
    service = sessiond(scripted_env(owner_renew=0.02))
    names = [f"octo/r{number}" for number in range(60)]
    redis = redis_library.Redis.from_url(redis_server.url, decode_responses=True)
    for _ in range(3):
        for name in names:
            service.client().take(name)
        service.terminate()
        assert {redis.hget(f"sessiond:{{{name}}}:meta", "instance") for name in names} == {""}
        service.start()


def test_a_killed_owner_is_followed_after_owner_ttl(sessiond: Start) -> None:
    times = {"owner_ttl": 2.0, "owner_renew": 0.5}
    first, second = sessiond(scripted_env(**times), name="a"), sessiond(scripted_env(**times), name="b")
    client = first.client()
    place, epoch = client.take(SESSION, key="k")["id"], client.view(SESSION)["epoch"]
    first.kill9()
    with pytest.raises((NotOwner, Unavailable)):
        second.client().view(SESSION)
    taken_over = eventually(lambda: _view(second), 10)
    assert taken_over["epoch"] > epoch
    assert [t["id"] for t in taken_over["queue"]] == [place]
    eventually(lambda: not first.left(), 5, "no process of the killed one is left")


def test_no_instance_takes_over_a_session_whose_owner_redis_lost(
    redis_server: Redis, sessiond: Start, tmp_path: Path
) -> None:
    """Redis returns with data from before the session had an owner. The running owner writes its state back."""
    first = sessiond(scripted_env(), name="a")
    old = Scene(first, SESSION)
    old.take("before")
    first.terminate()
    redis_server.copy(tmp_path / "older")
    first.start()
    second = Scene(sessiond(scripted_env(), name="b"), SESSION)
    old.lease("before")
    place, epoch = old.take("behind"), old.view()["epoch"]
    assert second.view()["owner"]["url"] == first.url, "the instance has read who the owner is"
    first.pause()
    redis_server.kill9()
    redis_server.restore_data(tmp_path / "older")
    redis_server.start()
    for _ in range(5):
        answer = eventually(lambda: _other_than(503, second.service), 20)
        assert (answer.status, answer.json()["owner_url"]) == (421, first.url)
    first.resume()
    assert old.lost("before") == ""
    old.wait_until(lambda: old.count_events("restored"))
    assert old.view()["epoch"] == epoch and second.view()["epoch"] == epoch
    assert second.client.ticket(SESSION, place)["id"] == place
    old.drain()
    old.check()
    assert old.wrong == []


def test_an_owner_that_is_deposed_before_it_reads_the_state_stops_no_agent(
    redis_server: Redis, sessiond: Start, tmp_path: Path
) -> None:
    times = {"owner_ttl": 2.0, "owner_renew": 0.4, "owner_doubt": 1.5}
    place = tmp_path / "overtaken"
    settings = Settings(
        redis_url=redis_server.url, state_dir=place, instance="x", host_name=socket.gethostname(), times=Times(**times)
    )  # fmt: skip
    owned = OwnershipStore(redis_server.url, Instance("x", settings.url, place, settings.host_name), 2.0).acquire(
        SESSION
    )
    scene = Scene(sessiond(scripted_env(**times), name="b"), SESSION)
    eventually(lambda: _taken(scene), 20, "it takes the session over: nobody renews")
    scene.lease("a")
    turn = scene.start_call(scene.turn, "a", "#tokens 100000\n#pace 5ms")
    scene.wait_for_turn()
    store = Store(redis_server.url, SESSION, "x")
    with pytest.raises(Deposed):
        Session(settings, store, owned, Slots(1)).start()
    gevent.sleep(1.0)  # enough time for an action that must not happen
    scene.retry(scene.force, scene.view()["holder"]["fence"])
    turn.end()
    assert turn.answer.outcome == "cancelled", turn.answer


def _other_than(status: int, service: Sessiond) -> Any:
    """Return this instance's own answer once its status differs from `status`."""
    url = f"{service.url}/v1/sessions/{SESSION}"
    answer = urllib3.request("GET", url, headers={"Authorization": "Bearer admin-key"}, retries=False)
    return None if answer.status == status else answer


def _taken(scene: Scene) -> bool:
    with contextlib.suppress(NotOwner, Unavailable):
        scene.take("a")
        return True
    return False


def _view(service: Sessiond):  # type: ignore[no-untyped-def]
    try:
        return service.client().view(SESSION)
    except (NotOwner, Unavailable):
        return None


def test_after_kill_9_the_lease_is_kept_and_the_open_turn_is_lost(sessiond: Start) -> None:
    service = sessiond(scripted_env())
    client, results = service.client(), []
    ready = threading.Event()

    def holder() -> None:
        with service.client().lease(SESSION, key="holder") as lease:
            lease.turn("before").result()
            ready.set()
            results.append(lease.turn("cut\n#tokens 100000\n#pace 10ms").result())
            lease.check()
            results.append(lease.turn("#history").result())

    thread = threading.Thread(target=holder)
    thread.start()
    ready.wait(10)
    eventually(lambda: sum(e["event"] == "turn-started" for e in client.ledger(SESSION)) == 2)
    client.take(SESSION, key="next")
    before = client.view(SESSION)
    service.kill9()
    eventually(lambda: not service.left(), 3, "nothing of the killed one is left")
    service.start()
    after = client.view(SESSION)
    assert after["holder"]["fence"] == before["holder"]["fence"]
    assert [t["key"] for t in after["queue"]] == ["next"]
    assert after["agent"]["conversation"]["id"] == before["agent"]["conversation"]["id"]
    thread.join(30)
    assert [t.outcome for t in results] == ["lost", "completed"]
    assert '"before"' in results[1].text
    with client.lease(SESSION, key="next"):
        pass
    assert verify(client.ledger(SESSION)).violations == []


def test_a_killed_worker_process_is_replaced_and_owns_its_sessions_at_once(sessiond: Start) -> None:
    """Only gunicorn's worker dies. The master starts another, and the file lock proves that the first is dead."""
    service = sessiond(scripted_env())
    client = service.client()
    place, epoch = client.take(SESSION, key="k")["id"], client.view(SESSION)["epoch"]
    service.remember()
    (worker,) = psutil.Process(service.pid).children()
    worker.kill()
    after = eventually(lambda: _view(service), 10)
    assert after["epoch"] > epoch
    assert [t["id"] for t in after["queue"]] == [place]


def test_a_second_writer_is_detected_and_the_session_is_acquired_again(sessiond: Start, redis_server: Redis) -> None:
    """An impossible step is refused, the agent is stopped, and the owner loads the stored state."""
    service = sessiond(scripted_env())
    client = service.client()
    with client.lease(SESSION, key="k") as lease:
        assert lease.turn("before").result().completed
        before = client.view(SESSION)
        redis_library.Redis.from_url(redis_server.url).hincrby(f"sessiond:{{{SESSION}}}:meta", "version", 5)
        with pytest.raises((ProblemError, Unavailable)):
            client.take(SESSION, key="refused")
        # Until the session is acquired again, its view shows the state from before.
        after = eventually(lambda: (now := _view(service)) and now["epoch"] > before["epoch"] and now, 10)
        assert after["holder"]["fence"] == before["holder"]["fence"]
        assert '"before"' in lease.turn("#history").result().text
    assert "refused" not in [t["key"] for t in client.view(SESSION)["queue"]]
    assert "single_writer" in service.log_bytes().decode()
    # No owner wrote these versions into the ledger: the checker reports them as missing, and nothing else.
    assert [name for name, _, _ in verify(client.ledger(SESSION)).violations] == ["single_writer"]


def test_an_unreadable_session_does_not_affect_other_sessions(sessiond: Start, redis_server: Redis) -> None:
    """The loop that looks for sessions without an owner also renews the records of owned ones."""
    service = sessiond(scripted_env(owner_renew=0.3))
    client = service.client()
    place = client.take(SESSION, key="k")["id"]
    with redis_library.Redis.from_url(redis_server.url) as redis:
        redis.set("sessiond:{octo/unreadable}:lease", "no JSON")
        redis.sadd("sessiond:sessions", "octo/unreadable")
        eventually(lambda: b"the session cannot be taken" in service.log_bytes())
        beat = int(redis.hget(f"sessiond:{{{SESSION}}}:meta", "beat"))
        eventually(lambda: int(redis.hget(f"sessiond:{{{SESSION}}}:meta", "beat")) >= beat + 2)
    assert [t["id"] for t in client.view(SESSION)["queue"]] == [place]


def test_a_second_sigterm_waits_until_the_first_has_released_everything(sessiond: Start, redis_server: Redis) -> None:
    """The end of a control group signals the worker twice: directly, and through the master."""
    service = sessiond(scripted_env("ignore-sigterm"))
    client = service.client()
    with client.lease(SESSION, key="k") as lease:
        turn = lease.turn("#at text silent\n#say never")
        eventually(lambda: client.turn(SESSION, turn.id)["state"] == "started")
        (worker,) = psutil.Process(service.pid).children()
        worker.send_signal(signal.SIGTERM)
        service.terminate()
        lease.abandon()
    with redis_library.Redis.from_url(redis_server.url, decode_responses=True) as redis:
        assert redis.hget(f"sessiond:{{{SESSION}}}:meta", "instance") == ""
