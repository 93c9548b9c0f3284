"""A query of a session that nobody has used yet shows an empty view and changes nothing."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import redis as redis_library
import urllib3

from sessiond.client import ProblemError
from support.servers import Redis, Sessiond, eventually, scripted_env

SESSION = "octo/ghost"
Start = Callable[..., Sessiond]


TURN = "/turns/tu-" + "0" * 32


def stored(server: Redis) -> set[str]:
    return {key.decode() for key in redis_library.Redis.from_url(server.url).keys("*")}


def test_neither_a_query_nor_a_refusal_creates_a_session(sessiond: Start, redis_server: Redis) -> None:
    client = sessiond(scripted_env()).client()
    before = stored(redis_server)
    view = client.view(SESSION)
    assert (view["session"], view["epoch"], view["owner"], view["holder"]) == (SESSION, 0, None, None)
    assert (view["queue"], view["turn"], view["agent"]["state"]) == ([], None, "asleep")
    assert client.ledger(SESSION) == client.ledger(SESSION, wait=0.1) == []
    for look in (
        lambda: client.ticket(SESSION, "tk-" + "0" * 32),
        lambda: client.withdraw(SESSION, "tk-" + "0" * 32),
        lambda: client.turn(SESSION, "tu-" + "0" * 32),
        lambda: client.turn_by_key(SESSION, "none"),
    ):
        with pytest.raises(ProblemError, match="not-found"):
            look()
    assert client.sessions() == []
    assert stored(redis_server) == before


def test_an_unknown_secret_creates_no_session(sessiond: Start, redis_server: Redis) -> None:
    service = sessiond(scripted_env())
    before = stored(redis_server)
    calls: tuple[tuple[str, str, Any, int], ...] = (
        ("POST", "/lease/renew", {}, 400), ("DELETE", "/lease", None, 400), ("POST", "/turns", {"prompt": "x"}, 400),
        ("DELETE", TURN, None, 404),
    )  # fmt: skip
    for method, path, body, without in calls:
        for secret, status in ((None, without), ("of no lease", 403)):
            headers = {"Authorization": f"Bearer {service.keys['admin']}"}
            if secret is not None:
                headers["Lease-Secret"] = secret
            answer = urllib3.request(method, f"{service.url}/v1/sessions/{SESSION}{path}", json=body, headers=headers)
            assert answer.status == status, (method, path, secret, answer.data)
    assert service.client().sessions() == []
    assert stored(redis_server) == before


def test_the_view_of_an_unused_session_has_the_shape_of_a_used_one(sessiond: Start) -> None:
    client = sessiond(scripted_env()).client()
    unused = client.view(SESSION)
    client.take(SESSION)
    used = client.view(SESSION)
    assert list(unused) == list(used) and sorted(unused["agent"]) == sorted(used["agent"])


def test_a_follower_of_an_unused_session_sees_its_first_entry(sessiond: Start) -> None:
    service = sessiond(scripted_env())
    heard: list[dict[str, Any]] = []

    def follow() -> None:
        for entry in service.client("viewer").follow_ledger(SESSION):
            heard.append(entry)
            if entry["event"] == "taken":
                return

    thread = threading.Thread(target=follow)
    thread.start()
    client = service.client()
    assert client.ledger(SESSION) == []
    client.take(SESSION)
    thread.join(10)
    eventually(lambda: [e["event"] for e in heard] == ["epoch", "snapshot", "taken"])
