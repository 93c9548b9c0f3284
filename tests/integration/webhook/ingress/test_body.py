"""Bodies of requests: size, declared length and chunks, over real HTTP with two processes."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sessiond_webhook.deliveries.signature import sign
from sessiond_webhook.ingress.body import LIMIT
from support.servers import Webhook
from support.webhook.ingress_calls import connection, problem, two_secrets


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webhook]:
    with two_secrets(Path(tmp_path_factory.mktemp("webhook"))) as made:
        yield made


def test_25_mb_are_accepted_and_one_more_byte_gets_413(service: Webhook) -> None:
    text = b'"' + b"x" * (LIMIT - 2) + b'"'
    assert service.post("ping", None, body=text).status == 200
    problem(service.post("ping", None, body=text + b" "), "too-large")
    problem(service.post("ping", None, body=text + b" ", headers={"X-Hub-Signature-256": None}), "too-large")


def test_a_declared_length_over_the_limit_gets_413_before_the_body_is_sent(service: Webhook) -> None:
    link = connection(service)
    link.putrequest("POST", "/github")
    link.putheader("Content-Length", str(LIMIT + 1))
    link.endheaders()
    assert link.getresponse().status == 413
    link.close()


@pytest.mark.parametrize("signed", [True, False])
def test_chunks_over_the_limit_get_413(service: Webhook, signed: bool) -> None:
    link = connection(service)
    headers = {"Content-Type": "application/json", "X-GitHub-Event": "ping", "X-GitHub-Delivery": "d"}
    if signed:
        headers["X-Hub-Signature-256"] = "sha256=" + "0" * 64
    piece = b"x" * 2**20
    link.request("POST", "/github", body=(piece for _ in range(26)), headers=headers, encode_chunked=True)
    assert link.getresponse().status == 413
    link.close()


def test_chunks_below_the_limit_are_accepted(service: Webhook) -> None:
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
        (HEAD + "Content-Length: 5\r\n\r\n{}", 408),  # declares more than it sends
        (HEAD + "Content-Length: 1\r\n\r\n{}", 401),  # declares less, so the signature does not match
        (HEAD + "Content-Length: -1\r\n\r\n{}", 400),
        (HEAD + "Content-Length: x\r\n\r\n{}", 400),
        (HEAD + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", 400),
        (HEAD + "Transfer-Encoding: chunked\r\n\r\nzz\r\n{}", 400),
        (HEAD + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}XX", 400),
        (HEAD + "\r\n", 401),  # no body at all
        ("nonsense\r\n\r\n", 400),
    ],
)
def test_a_wrong_declared_length_is_refused(service: Webhook, raw: str, status: int) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as link:
        link.sendall(raw.encode())
        assert link.recv(4096).split(b" ")[1] == str(status).encode()


def test_a_truncated_body_gets_400_and_is_never_accepted(service: Webhook) -> None:
    signed = f"X-Hub-Signature-256: {sign(Webhook.SECRET, b'{}')}\r\nX-GitHub-Event: ping\r\nX-GitHub-Delivery: d\r\n"
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as link:
        link.sendall((HEAD + signed + "Content-Length: 5\r\n\r\n{}").encode())
        link.shutdown(socket.SHUT_WR)
        assert link.recv(4096).split(b" ")[1] == b"400"
