"""A web process after SIGTERM: it answers open requests and does not wait for idle connections.

No test measures time: a process that waits for idle connections logs it.
"""

import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import urllib3

from support.servers import Sessiond, Webhook, eventually, scripted_env
from support.webhook import payloads

REQUEST = b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n"


def connected(port: int) -> socket.socket:
    """Return a keep-alive connection that has had one request."""
    found = socket.create_connection(("127.0.0.1", port), timeout=20)
    found.sendall(REQUEST)
    assert answered(found)
    return found


def answered(connection: socket.socket) -> bool:
    """Return whether a complete answer with status 200 arrives."""
    received = b""
    while not received.endswith(b"}"):
        more = connection.recv(65536)
        if not more:
            return False
        received += more
    return b" 200 " in received


def signalled(worker: psutil.Process) -> bool:
    """Return whether SIGTERM is pending for the stopped process."""
    lines = Path(f"/proc/{worker.pid}/status").read_text().splitlines()
    (pending,) = (int(line.split()[1], 16) for line in lines if line.startswith("ShdPnd"))
    return bool(pending >> (signal.SIGTERM - 1) & 1)


def terminate_with_open_connections(master: psutil.Process, port: int) -> None:
    (worker,) = master.children()
    idle, half, here = connected(port), connected(port), connected(port)
    half.sendall(REQUEST[:20])
    worker.suspend()
    eventually(lambda: worker.status() == psutil.STATUS_STOPPED)
    here.sendall(REQUEST)
    master.terminate()
    eventually(lambda: signalled(worker))
    worker.resume()
    assert answered(here), "what has arrived is answered"
    assert [connection.recv(100) for connection in (idle, half, here)] == [b""] * 3
    for connection in (idle, half, here):
        connection.close()


def check(log: str) -> None:
    assert not [word for word in ("not answered in time", "Traceback", "Error") if word in log], log


def test_sessiond_answers_open_requests_after_sigterm(sessiond: Callable[..., Sessiond]) -> None:
    service = sessiond(scripted_env())
    terminate_with_open_connections(psutil.Process(service.pid), service.port)
    service.terminate()
    check(service.log_text())


def test_the_webhook_answers_open_requests_after_sigterm(webhook: Callable[..., Webhook]) -> None:
    service = webhook({"WEBHOOK_PROCESSES": "1"})
    terminate_with_open_connections(psutil.Process(service.process.pid), service.port)
    assert service.process.wait(20) == 0
    check(service.log_text(0))


def closed(port: int) -> bool:
    """Return whether nothing listens on the port any more."""
    with socket.socket() as found:
        return found.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize("answers", [True, False])
def test_sigterm_waits_for_open_requests_until_the_deadline(webhook: Callable[..., Webhook], answers: bool) -> None:
    service = webhook({"WEBHOOK_PROCESSES": "1"})
    service.hold("ingress-committed")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(service.post, "issue_comment", payloads.comment("IC_1"), "one")
        service.wait_until_reached("ingress-committed")
        service.process.terminate()
        eventually(lambda: closed(service.port))
        if answers:
            service.release("ingress-committed")
            assert asked.result().status == 202
        else:
            with pytest.raises(urllib3.exceptions.ProtocolError):
                asked.result()
    assert service.process.wait(20) == 0
    assert ("1 connections were not answered in time" in service.log_text(0)) is not answers
