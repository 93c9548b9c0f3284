"""A caller that is gone before it was heard gets no lease, and no place that nobody would know."""

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.servers import Sessiond, eventually, scripted_env
from support.session.crash_scenes import Scene

SESSION = "octo/hello"


def sent(service: Sessiond, path: str, given: dict[str, Any]) -> socket.socket:
    """A connection on which this was posted."""
    body = json.dumps(given).encode()
    head = (
        f"POST /v1/sessions/{SESSION}{path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {service.keys['handler']}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=60)
    connection.sendall(head.encode() + body)
    return connection


def waiting(service: Sessiond, ticket: str, holder: str) -> socket.socket:
    """A connection on which this wait was sent."""
    return sent(service, f"/tickets/{ticket}/wait", {"holder": holder, "wait": 60})


def answer(connection: socket.socket) -> bytes:
    found = b""
    while b'"state"' not in found:
        piece = connection.recv(65536)
        assert piece, found
        found += piece
    return found


def test_who_asks_while_the_service_stands_still_and_leaves(sessiond: Callable[..., Sessiond]) -> None:
    service = sessiond(scripted_env(head_wait=0.5))
    client = service.client()
    first, second = (client.take(SESSION, key=key)["id"] for key in "ab")
    service.pause()
    waiting(service, first, "gone").close()
    with waiting(service, second, "stays") as stays:
        time.sleep(0.5)
        service.go_on()
        assert b'"granted"' in answer(stays)
    granted = [e["holder"] for e in client.ledger(SESSION) if e["event"] == "granted"]
    assert granted[:1] == ["stays"]
    eventually(lambda: client.view(SESSION)["holder"] is None)


def test_a_place_that_nobody_would_know_is_not_taken(sessiond: Callable[..., Sessiond]) -> None:
    """It would bar the worker for `absence`."""
    service = sessiond(scripted_env())
    scene = Scene(service, SESSION)
    scene.take("w", "worker")
    service.pause()
    sent(service, "/tickets", {"kind": "handler"}).close()
    service.go_on()
    assert scene.wait("w", 20)["state"] == "granted"
    assert scene.happened("taken") == 1


def test_who_has_said_more_already_is_not_gone(sessiond: Callable[..., Sessiond]) -> None:
    service = sessiond(scripted_env())
    ticket = service.client().take(SESSION, key="a")["id"]
    with waiting(service, ticket, "hasty") as hasty:
        hasty.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b'"granted"' in answer(hasty)


def test_a_connection_whose_other_end_vanishes_is_found_out(sessiond: Callable[..., Sessiond]) -> None:
    """The kernel asks it: nothing else would ever tell of a machine that is gone without a word."""
    service = sessiond(scripted_env())
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
        connection.sendall(b"POST /v1/sessions/")
        ends = [f"0100007F:{port:04X}" for port in (service.port, connection.getsockname()[1])]

        def timer() -> str:
            rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
            return next((row[5][:2] for row in rows if row[1:3] == ends), "")

        eventually(lambda: timer() == "02")  # as the kernel numbers them: keepalive
