"""Every answer of `POST /github`, over real HTTP on two processes."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sessiond_webhook.deliveries.signature import sign
from sessiond_webhook.ingress.body import LIMIT
from sessiond_webhook.ingress.problems import KINDS
from support import payloads
from support.servers import Redis, Webhook, eventually

PREVIOUS = "the secret before"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webhook]:
    redis = Redis()
    secret = Path(tmp_path_factory.mktemp("secret")) / "previous"
    secret.write_text(PREVIOUS + "\n")
    env = {"WEBHOOK_SECRET_PREVIOUS_FILE": str(secret), "WEBHOOK_ARRIVAL_SECONDS": "5", "TRIGGER": "all"}
    made = Webhook(redis.url, Path(tmp_path_factory.mktemp("webhook")), env)
    yield made
    made.close()
    redis.close()


def problem(answer: Any, kind: str) -> None:
    assert answer.headers["Content-Type"] == "application/problem+json", (answer.status, answer.data)
    found = answer.json()
    assert (found["type"], found["status"], answer.status) == (kind, KINDS[kind].status, KINDS[kind].status), found
    assert found["title"] and found["detail"]
    assert ("Retry-After" in answer.headers) == (KINDS[kind].retry_after is not None)


def test_ping_and_what_is_not_for_us(service: Webhook) -> None:
    assert service.post("ping", payloads.load("ping")).status == 200
    before = service.counted().get(("star", "ignored"), 0)
    assert service.post("star", {"action": "created"}).status == 204
    assert service.counted()["star", "ignored"] == before + 1
    assert service.post("of my own making", {}, headers={"X-GitHub-Event": "made_up"}).status == 204
    assert service.counted()["other", "ignored"] >= 1


def test_accepted_with_either_secret_as_json_and_as_a_form(service: Webhook) -> None:
    for number, more in enumerate([{}, {"secret": PREVIOUS}, {"form": True}, {"form": True, "secret": PREVIOUS}]):
        answer = service.post("issue_comment", payloads.comment(f"IC_s{number}", "über & co = ok? +1"), **more)
        assert (answer.status, answer.json()["outcome"], answer.json()["demand"]) == (202, "accepted", f"IC_s{number}")


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Hub-Signature-256": None},
        {"X-Hub-Signature-256": ""},
        {"X-Hub-Signature-256": "sha256=" + "0" * 64},
        {"X-Hub-Signature-256": "sha1=" + "0" * 40},
        {"X-Hub-Signature-256": None, "X-Hub-Signature": "sha1=" + "0" * 40},
    ],
)
def test_unsigned_or_wrongly_signed_is_401(service: Webhook, headers: dict[str, str | None]) -> None:
    answer = service.post("issue_comment", payloads.comment("IC_unsigned"), headers=headers)
    problem(answer, "unauthorized")
    problem(service.post("ping", {}, secret="another"), "unauthorized")


def test_a_signature_of_another_body_is_401(service: Webhook) -> None:
    body = b'{"zen": "x"}'
    headers = {"X-Hub-Signature-256": sign(Webhook.SECRET, body + b" ")}
    problem(service.post("ping", None, body=body, headers=headers), "unauthorized")


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "application/xml", "", None])
def test_other_content_types_are_415(service: Webhook, kind: str | None) -> None:
    problem(service.post("ping", {}, headers={"Content-Type": kind}), "unsupported-media-type")
    unsigned = {"Content-Type": kind, "X-Hub-Signature-256": None}
    problem(service.post("ping", {}, headers=unsigned), "unsupported-media-type")


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"{} {}", b'"\\ud800"', b"[" * 5000, b"NaN"])
def test_what_is_not_json_is_400(service: Webhook, body: bytes) -> None:
    problem(service.post("issue_comment", None, body=body), "bad-request")


@pytest.mark.parametrize(
    "body", [b"", b"payload=", b"payload={", b"x={}", b"payload={}&payload={}", b"payload=%ff", b"\xff"]
)
def test_what_is_no_form_with_a_payload_is_400(service: Webhook, body: bytes) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    problem(service.post("issue_comment", None, body=body, headers=headers), "bad-request")


@pytest.mark.parametrize("name", ["X-GitHub-Event", "X-GitHub-Delivery"])
@pytest.mark.parametrize("value", [None, "", "two words", "x" * 201])
def test_without_its_headers_it_is_400(service: Webhook, name: str, value: str | None) -> None:
    problem(service.post("ping", {}, headers={name: value}), "bad-request")


@pytest.mark.parametrize("payload", [{}, [], {"action": 5}, {"action": "created"}, payloads.comment(comment__id="x")])
def test_an_unusable_payload_of_an_event_that_we_handle_is_400(service: Webhook, payload: Any) -> None:
    problem(service.post("issue_comment", payload), "bad-payload")


def test_other_paths_and_methods(service: Webhook) -> None:
    problem(service.pool.request("GET", f"{service.url}/nothing"), "not-found")
    answer = service.pool.request("GET", f"{service.url}/github")
    problem(answer, "method-not-allowed")
    assert answer.headers["Allow"] == "POST"
    assert service.pool.request("GET", f"{service.url}/healthz").status == 200
    assert service.pool.request("GET", f"{service.url}/readyz").status == 200


# ---- size ----------------------------------------------------------------------------------------


def connection(service: Webhook) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)


def test_25_mb_are_taken_and_one_byte_more_is_413(service: Webhook) -> None:
    text = b'"' + b"x" * (LIMIT - 2) + b'"'
    assert service.post("ping", None, body=text).status == 200
    problem(service.post("ping", None, body=text + b" "), "too-large")
    problem(service.post("ping", None, body=text + b" ", headers={"X-Hub-Signature-256": None}), "too-large")


def test_a_declared_length_over_the_limit_is_413_before_anything_is_sent(service: Webhook) -> None:
    link = connection(service)
    link.putrequest("POST", "/github")
    link.putheader("Content-Length", str(LIMIT + 1))
    link.endheaders()
    assert link.getresponse().status == 413
    link.close()


@pytest.mark.parametrize("signed", [True, False])
def test_chunks_over_the_limit_are_413(service: Webhook, signed: bool) -> None:
    link = connection(service)
    headers = {"Content-Type": "application/json", "X-GitHub-Event": "ping", "X-GitHub-Delivery": "d"}
    if signed:
        headers["X-Hub-Signature-256"] = "sha256=" + "0" * 64
    piece = b"x" * 2**20
    link.request("POST", "/github", body=(piece for _ in range(26)), headers=headers, encode_chunked=True)
    assert link.getresponse().status == 413
    link.close()


def test_chunks_below_the_limit_are_as_good(service: Webhook) -> None:
    link, body = connection(service), b'{"zen": "in chunks"}'
    headers = {
        "Content-Type": "application/json", "X-GitHub-Event": "ping", "X-GitHub-Delivery": "d",
        "X-Hub-Signature-256": sign(Webhook.SECRET, body),
    }  # fmt: skip
    link.request("POST", "/github", body=iter([body[:5], body[5:]]), headers=headers, encode_chunked=True)
    assert link.getresponse().status == 200
    link.close()


HEAD = "POST /github HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (HEAD + "Content-Length: 5\r\n\r\n{}", 408),  # says more than it sends
        (HEAD + "Content-Length: 1\r\n\r\n{}", 401),  # says less: not what was signed
        (HEAD + "Content-Length: -1\r\n\r\n{}", 400),
        (HEAD + "Content-Length: x\r\n\r\n{}", 400),
        (HEAD + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", 400),
        (HEAD + "Transfer-Encoding: chunked\r\n\r\nzz\r\n{}", 400),
        (HEAD + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}XX", 400),
        (HEAD + "\r\n", 401),  # no body at all
        ("nonsense\r\n\r\n", 400),
    ],
)
def test_lengths_that_lie(service: Webhook, raw: str, status: int) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as link:
        link.sendall(raw.encode())
        assert link.recv(4096).split(b" ")[1] == str(status).encode()


def test_a_body_that_breaks_off_is_400_and_never_taken_for_a_whole_one(service: Webhook) -> None:
    signed = f"X-Hub-Signature-256: {sign(Webhook.SECRET, b'{}')}\r\nX-GitHub-Event: ping\r\nX-GitHub-Delivery: d\r\n"
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as link:
        link.sendall((HEAD + signed + "Content-Length: 5\r\n\r\n{}").encode())
        link.shutdown(socket.SHUT_WR)
        assert link.recv(4096).split(b" ")[1] == b"400"


# ---- the process ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({}, "WEBHOOK_SECRET"),
        ({"WEBHOOK_SECRET": "  "}, "WEBHOOK_SECRET"),
        ({"WEBHOOK_SECRET_FILE": "/nowhere"}, "WEBHOOK_SECRET_FILE"),
        ({"WEBHOOK_SECRET": "x", "WEBHOOK_PORT": "many"}, "WEBHOOK_PORT"),
        ({"WEBHOOK_SECRET": "x", "WEBHOOK_PROCESSES": "0"}, "WEBHOOK_PROCESSES"),
        ({"WEBHOOK_SECRET": "x", "TRIGGER": "whim"}, "TRIGGER"),
        ({"WEBHOOK_SECRET": "x", "ALLOWED_USERS": "mona"}, "ALLOWED_USERS"),
        ({"WEBHOOK_SECRET": "x", "ALLOWED_ASSOCIATIONS": "OWNER FRIEND"}, "ALLOWED_ASSOCIATIONS"),
        ({"WEBHOOK_SECRET": "x", "BOT_ID": "helper"}, "BOT_ID"),
        ({"WEBHOOK_SECRET": "x", "REDIS_URL": "http://x"}, "REDIS_URL"),
    ],
)
def test_bad_settings_are_one_line_and_exit_2(env: dict[str, str], named: str) -> None:
    full = {"PATH": os.environ["PATH"], **env}
    done = subprocess.run(
        [sys.executable, "-m", "sessiond_webhook"], env=full, capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert named in done.stderr and "Traceback" not in done.stderr


def test_sigusr1_tells_the_stacks_and_sigterm_ends_in_order(webhook: Callable[..., Webhook]) -> None:
    service = webhook()
    for worker in service.workers():
        worker.send_signal(signal.SIGUSR1)
    eventually(lambda: service.log_text(0).count("Current thread") >= 2, 10, "stacks of both")
    idle = connection(service)
    idle.request("GET", "/healthz")
    assert idle.getresponse().read()
    service.hold("ingress-committed")
    late, body = connection(service), json.dumps(payloads.load("pull_request.closed")).encode()
    headers = {
        "Content-Type": "application/json", "X-GitHub-Event": "pull_request", "X-GitHub-Delivery": "late",
        "X-Hub-Signature-256": sign(Webhook.SECRET, body),
    }  # fmt: skip
    late.request("POST", "/github", body=body, headers=headers)
    service.reached("ingress-committed")
    service.process.terminate()
    service.let_go("ingress-committed")
    assert late.getresponse().status == 202
    assert service.process.wait(20) == 0
    assert "not answered in time" not in service.log_text(0)
    idle.close()


def test_no_metrics_directory_is_left(webhook: Callable[..., Webhook], tmp_path: Path) -> None:
    service = webhook({"TMPDIR": str(tmp_path)})
    assert len(list(tmp_path.glob("webhook-metrics-*"))) == 1
    service.terminate()
    assert not list(tmp_path.glob("webhook-metrics-*"))
