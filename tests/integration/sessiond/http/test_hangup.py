"""A caller that disconnects before its request is read gets no lease and no ticket without a key."""

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.servers import Sessiond, eventually, scripted_env
from support.session.crash_scenes import Scene

SESSION = "octo/hello"


def post(service: Sessiond, path: str, given: dict[str, Any]) -> socket.socket:
    """Post this body and return the connection."""
    body = json.dumps(given).encode()
    head = (
        f"POST /v1/sessions/{SESSION}{path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {service.keys['handler']}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=60)
    connection.sendall(head.encode() + body)
    return connection


def post_wait(service: Sessiond, ticket: str, holder: str) -> socket.socket:
    """Post this wait and return the connection."""
    return post(service, f"/tickets/{ticket}/wait", {"holder": holder, "wait": 60})


def answer(connection: socket.socket) -> bytes:
    found = b""
    while b'"state"' not in found:
        piece = connection.recv(65536)
        assert piece, found
        found += piece
    return found


def test_a_caller_that_leaves_while_the_service_is_paused_gets_no_lease(sessiond: Callable[..., Sessiond]) -> None:
    service = sessiond(scripted_env(head_wait=0.5))
    client = service.client()
    first, second = (client.take(SESSION, key=key)["id"] for key in "ab")
    service.pause()
    post_wait(service, first, "gone").close()
    with post_wait(service, second, "stays") as stays:
        time.sleep(0.5)
        service.resume()
        assert b'"granted"' in answer(stays)
    granted = [e["holder"] for e in client.ledger(SESSION) if e["event"] == "granted"]
    assert granted[:1] == ["stays"]
    eventually(lambda: client.view(SESSION)["holder"] is None)


def test_a_keyless_ticket_of_a_caller_that_left_is_not_taken(sessiond: Callable[..., Sessiond]) -> None:
    """Otherwise an unknown ticket would block the worker for `absence`."""
    service = sessiond(scripted_env())
    scene = Scene(service, SESSION)
    scene.take("w", "worker")
    service.pause()
    post(service, "/tickets", {"kind": "handler"}).close()
    service.resume()
    assert scene.wait("w", 20)["state"] == "granted"
    assert scene.count_events("taken") == 1


def test_a_caller_that_pipelines_a_request_is_still_connected(sessiond: Callable[..., Sessiond]) -> None:
    service = sessiond(scripted_env())
    ticket = service.client().take(SESSION, key="a")["id"]
    with post_wait(service, ticket, "hasty") as hasty:
        hasty.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b'"granted"' in answer(hasty)


def test_keepalive_detects_a_client_that_vanished(sessiond: Callable[..., Sessiond]) -> None:
    """The kernel probes the client. Only this detects a machine that failed without closing its connections."""
    service = sessiond(scripted_env())
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
        connection.sendall(b"POST /v1/sessions/")
        ends = [f"0100007F:{port:04X}" for port in (service.port, connection.getsockname()[1])]

        def timer() -> str:
            rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
            return next((row[5][:2] for row in rows if row[1:3] == ends), "")

        eventually(lambda: timer() == "02")  # the kernel's number for a keepalive timer
