"""Every problem type of the HTTP interface, over real HTTP."""

import contextlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from sessiond.problems import KINDS
from support.servers import TESTS, Redis, Sessiond, scripted_env

S = "/v1/sessions/octo/hello"
GHOST = "tk-" + "0" * 32


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sessiond]:
    redis = Redis()
    made = Sessiond(redis.url, Path(tmp_path_factory.mktemp("http")) / "state", scripted_env())
    yield made
    made.close()
    redis.close()


@pytest.fixture(scope="module")
def ask(service: Sessiond) -> Callable[..., Any]:
    return requester(service)


def requester(service: Sessiond) -> Callable[..., Any]:
    pool = urllib3.PoolManager(retries=False)

    def call(
        method: str, path: str, body: Any = None, *, role: str | None = "admin", stream: bool = False, **headers: str
    ) -> Any:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if role is not None:
            sent["Authorization"] = f"Bearer {service.keys[role]}"
        more: dict[str, Any] = {"headers": sent, "preload_content": not stream}
        if isinstance(body, bytes):
            return pool.request(method, service.url + path, body=body, **more)
        return pool.request(method, service.url + path, json=body, **more)

    return call


def problem(answer: Any, kind: str) -> dict[str, Any]:
    assert answer.headers["Content-Type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    assert (found["type"], found["status"], answer.status) == (kind, KINDS[kind].status, KINDS[kind].status), found
    assert found["title"] and found["detail"]
    assert ("Retry-After" in answer.headers) == (KINDS[kind].retry_after is not None)
    return found


BAD = [
    ({}, "kind"), ({"kind": "boss"}, "kind"), ({"kind": "handler", "priority": 10}, "priority"),
    ({"kind": "handler", "priority": 1.5}, "priority"), ({"kind": "handler", "priority": True}, "priority"),
    ({"kind": "handler", "key": ""}, "key"), ({"kind": "handler", "key": "x" * 513}, "key"),
    ({"kind": "handler", "key": "a\nb"}, "key"), ({"kind": "handler", "colour": 1}, "colour"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "field"), BAD)
def test_a_wrong_body_names_its_field(ask: Callable[..., Any], body: Any, field: str) -> None:
    assert problem(ask("POST", f"{S}/tickets", body), "bad-request")["field"] == field


@pytest.mark.parametrize("body", [b"{", b"[]", b'"x"', b"\xff", b'{"kind": NaN}'])
def test_a_body_that_is_not_a_json_object_is_400(ask: Callable[..., Any], body: bytes) -> None:
    problem(ask("POST", f"{S}/tickets", body, Content_Type="application/json"), "bad-request")


def test_keys_and_roles_are_checked(ask: Callable[..., Any]) -> None:
    answer = ask("GET", S, role=None)
    problem(answer, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    problem(ask("GET", S, role=None, Authorization="Bearer wrong"), "unauthorized")
    problem(ask("POST", f"{S}/tickets", {"kind": "worker"}, role="handler"), "forbidden")
    problem(ask("POST", f"{S}/tickets", {"kind": "handler"}, role="worker"), "forbidden")
    problem(ask("POST", f"{S}/tickets", {"kind": "handler"}, role="viewer"), "forbidden")
    problem(ask("POST", f"{S}/force-release", {"fence": 1, "reason": "x"}, role="handler"), "forbidden")
    assert ask("GET", S, role="viewer").status == 200
    assert ask("HEAD", S, role="viewer").status == 200


def test_unknown_paths_tickets_turns_and_methods_are_refused(ask: Callable[..., Any]) -> None:
    problem(ask("GET", "/nowhere"), "not-found")
    problem(ask("GET", f"{S}/tickets/{GHOST}"), "not-found")
    problem(ask("POST", f"{S}/tickets/{GHOST}/wait", {"holder": "h"}), "not-found")
    problem(ask("GET", f"{S}/turns/tu-{'0' * 32}"), "not-found")
    problem(ask("GET", f"{S}/turns?key=none"), "not-found")
    answer = ask("PUT", f"{S}/tickets", {})
    problem(answer, "method-not-allowed")
    assert answer.headers["Allow"] == "POST"
    problem(ask("GET", "/v1/sessions/oc!to/hello"), "bad-request")


def test_bodies_that_are_too_large_or_not_json_are_refused(ask: Callable[..., Any]) -> None:
    problem(ask("POST", f"{S}/tickets", b"kind=handler", Content_Type="text/plain"), "unsupported-media-type")
    problem(ask("POST", f"{S}/tickets", b" " * (5 * 2**20), Content_Type="application/json"), "too-large")


def test_calls_on_ended_leases_and_tickets_are_refused(ask: Callable[..., Any]) -> None:
    problem(ask("POST", f"{S}/lease/renew"), "bad-request")
    problem(ask("POST", f"{S}/lease/renew", Lease_Secret="never-given"), "forbidden")
    ticket = ask("POST", f"{S}/tickets", {"kind": "handler", "key": "e"}).json()["id"]
    problem(ask("POST", f"{S}/tickets", {"kind": "worker", "key": "e"}), "kind-mismatch")
    lease = ask("POST", f"{S}/tickets/{ticket}/wait", {"holder": "h", "wait": 2}).json()["lease"]
    secret = lease["secret"]
    problem(ask("POST", f"{S}/force-release", {"fence": lease["fence"] + 1, "reason": "x"}), "not-held")
    assert ask("POST", f"{S}/force-release", {"fence": lease["fence"], "reason": "x"}).status == 204
    lost = problem(ask("POST", f"{S}/lease/renew", Lease_Secret=secret), "lease-lost")
    assert lost["reason"] == "forced"
    problem(ask("DELETE", f"{S}/lease", Lease_Secret=secret), "lease-lost")
    problem(ask("POST", f"{S}/turns", {"prompt": "x"}, Lease_Secret=secret), "lease-lost")
    over = problem(ask("POST", f"{S}/tickets/{ticket}/wait", {"holder": "h"}), "ticket-ended")
    assert over["reason"] == "forced"


def test_superseded_holders_and_conflicting_turns_are_refused(ask: Callable[..., Any]) -> None:
    ahead = ask("POST", f"{S}/tickets", {"kind": "handler", "key": "ahead"}).json()["id"]
    held = ask("POST", f"{S}/tickets/{ahead}/wait", {"holder": "h", "wait": 5}).json()["lease"]["secret"]
    ticket = ask("POST", f"{S}/tickets", {"kind": "handler", "key": "turns"}).json()["id"]
    for holder in ("first", "second"):
        assert ask("POST", f"{S}/tickets/{ticket}/wait", {"holder": holder, "wait": 0}).json()["state"] == "waiting"
    assert ask("DELETE", f"{S}/lease", Lease_Secret=held).status == 204
    lease = ask("POST", f"{S}/tickets/{ticket}/wait", {"holder": "second", "wait": 5}).json()
    problem(ask("POST", f"{S}/tickets/{ticket}/wait", {"holder": "first", "wait": 0}), "superseded")
    problem(ask("DELETE", f"{S}/tickets/{ticket}", {"holder": "first"}), "superseded")
    secret = lease["lease"]["secret"]
    done = ask("POST", f"{S}/turns", {"prompt": "#say one", "key": "t"}, Lease_Secret=secret)
    assert done.headers["Content-Type"].startswith("text/event-stream") and b'"completed"' in done.data
    problem(ask("POST", f"{S}/turns", {"prompt": "#say two", "key": "t"}, Lease_Secret=secret), "key-reused")
    long = ask("POST", f"{S}/turns", {"prompt": "#tokens 100000\n#pace 5ms"}, Lease_Secret=secret, stream=True)
    problem(ask("POST", f"{S}/turns", {"prompt": "#say two"}, Lease_Secret=secret), "turn-open")
    problem(ask("POST", f"{S}/turns", {"prompt": "x", "raw": True}, role="handler", Lease_Secret=secret), "forbidden")
    assert ask("DELETE", f"{S}/turns/{long.headers['Turn-Id']}", Lease_Secret=secret).status == 204
    assert b'"cancelled"' in long.data
    assert ask("DELETE", f"{S}/lease", Lease_Secret=secret).status == 204


def test_a_failed_agent_or_redis_gives_503_and_another_owner_421(tmp_path: Path) -> None:
    """The 503s have Retry-After; the 421 names the owner's URL."""
    redis = Redis()
    first = Sessiond(redis.url, tmp_path / "a", scripted_env("exit-start=3"))
    second = Sessiond(redis.url, tmp_path / "b", scripted_env())
    try:
        ask, other = requester(first), requester(second)
        ticket = ask("POST", f"{S}/tickets", {"kind": "handler"}).json()["id"]
        assert problem(other("POST", f"{S}/tickets", {"kind": "handler"}), "not-owner")["owner_url"] == first.url
        lease = ask("POST", f"{S}/tickets/{ticket}/wait", {"holder": "h", "wait": 5}).json()["lease"]
        assert b"exited with 3" in ask("POST", f"{S}/turns", {"prompt": "x"}, Lease_Secret=lease["secret"]).data
        broken = problem(ask("POST", f"{S}/turns", {"prompt": "x"}, Lease_Secret=lease["secret"]), "agent-broken")
        assert "exited with 3" in broken["reason"]
        redis.kill9()
        problem(ask("POST", f"{S}/tickets", {"kind": "handler"}), "redis-away")
        problem(ask("GET", "/readyz", role=None), "redis-away")
        problem(ask("GET", "/v1/sessions/octo/never-seen"), "redis-away")
        redis.start()
    finally:
        first.close()
        second.close()
        redis.close()


def test_health_document_and_metrics_need_no_key(ask: Callable[..., Any]) -> None:
    for path in ("/healthz", "/readyz", "/openapi.json", "/metrics"):
        assert ask("GET", path, role=None).status == 200
    assert b"sessiond_lock_wait_seconds" in ask("GET", "/metrics", role=None).data


def test_answers_conform_to_the_openapi_document(service: Sessiond, figures: Callable[[str], None]) -> None:
    """schemathesis finds no error in the answers to requests that it generates from the served document."""
    command = [
        str(Path(sys.executable).parent / "schemathesis"), "run", f"{service.url}/openapi.json",
        "--header", "Authorization: Bearer admin-key", "--max-examples", "15", "--phases", "examples,coverage,fuzzing",
        "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
        "--seed", "1", "--request-timeout", "20",
    ]  # fmt: skip
    env = {**os.environ, "SCHEMATHESIS_HOOKS": "fuzz_hooks", "PYTHONPATH": str(TESTS / "support" / "http")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    tried = re.search(r"(\d+) generated", done.stdout)
    assert tried is not None and int(tried[1]) > 300, done.stdout[-2000:]
    figures(f"schemathesis: {tried[0]}")


@pytest.mark.parametrize(
    "after", ["99999999999999999999-0", "0-99999999999999999999", f"{2**64 - 1}-{2**64 - 1}", "%D9%A3-0", "1", "a-b"]
)
@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_an_invalid_ledger_id_is_400(ask: Callable[..., Any], after: str, accept: str) -> None:
    problem(ask("GET", f"{S}/ledger?after={after}", Accept=accept), "bad-request")


def post_chunked(service: Sessiond, chunks: bytes) -> bytes:
    """Post a chunked body. Returns the beginning of the answer."""
    head = (
        f"POST {S}/tickets HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.keys['admin']}\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
        with contextlib.suppress(ConnectionError):  # the service may answer before it has read everything
            connection.sendall(head.encode() + chunks)
        return connection.recv(100)


def test_a_chunked_body_that_is_too_large_is_413(service: Sessiond) -> None:
    chunk = b"100000\r\n" + b" " * 2**20 + b"\r\n"
    given = b'12\r\n{"kind":"handler"}\r\n'
    assert post_chunked(service, given + chunk * 3 + b"0\r\n\r\n").startswith(b"HTTP/1.1 201")
    assert post_chunked(service, given + chunk * 4 + b"0\r\n\r\n").startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("chunks", [b"zz\r\n", b"-5\r\n", b"5;x\r\nabcdeXX", b"5\r\nabcdefgh\r\n0\r\n\r\n"])
def test_malformed_chunks_are_400(service: Sessiond, chunks: bytes) -> None:
    assert post_chunked(service, chunks).startswith(b"HTTP/1.1 400")


def test_an_event_source_that_reconnects_continues_where_it_was(ask: Callable[..., Any]) -> None:
    """On reconnecting it sends Last-Event-ID together with the query of its first request."""
    ask("POST", f"{S}/tickets", {"kind": "handler", "key": "reconnect"})
    entries = ask("GET", f"{S}/ledger?count=1000").json()["entries"]
    again = ask("GET", f"{S}/ledger?count=1000&after=0-0", Last_Event_ID=entries[-2]["id"])
    assert [e["id"] for e in again.json()["entries"]] == [entries[-1]["id"]]
