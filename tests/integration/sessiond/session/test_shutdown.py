"""Tools to analyze a hang: SIGUSR1 writes the stacks of every process, and a long wait is logged."""

import contextlib
import signal
import threading
from collections.abc import Callable

import psutil

from sessiond.client import Unavailable
from support.servers import Sessiond, eventually, scripted_env

SESSION = "octo/hello"
Start = Callable[..., Sessiond]


def test_sigusr1_writes_the_stacks_of_master_worker_and_guard_and_ends_none(sessiond: Start) -> None:
    service = sessiond(scripted_env())
    client = service.client()
    with client.lease(SESSION) as lease:
        assert lease.turn("#say one").result().text == "one"
        master = psutil.Process(service.pid)
        (worker,) = master.children()
        guard = psutil.Process(client.view(SESSION)["agent"]["pid"]).parent()
        assert guard is not None
        for process, place in ((worker, "gevent"), (guard, "guard.py"), (master, "arbiter.py")):
            before = len(service.log_bytes())
            process.send_signal(signal.SIGUSR1)
            eventually(
                lambda before=before, place=place: has_stack_of(service.log_bytes()[before:], place),
                5,
                f"{place} in its stack",
            )
        assert lease.turn("#say two").result().text == "two"


def has_stack_of(log: bytes, place: str) -> bool:
    return b"(most recent call first)" in log and place.encode() in log


def test_a_long_wait_is_logged_with_the_holder_ahead_also_by_the_next_owner(sessiond: Start) -> None:
    service = sessiond(scripted_env(long_wait=0.3))
    client = service.client()

    def wait(ticket: str) -> None:
        body = {"holder": "h", "wait": 60}
        with contextlib.suppress(Unavailable):  # the service stops
            client.transport.call("POST", f"/tickets/{ticket}/wait", session=SESSION, body=body, timeout=70)

    with client.lease(SESSION, kind="worker"):
        ticket = client.take(SESSION, kind="worker", key="waits")["id"]
        for _ in range(2):
            before = len(service.log_bytes())
            waiter = threading.Thread(target=wait, args=(ticket,))
            waiter.start()
            line = eventually(lambda before=before: long_wait(service.log_bytes()[before:]))
            assert ticket.encode() in line and b"holds" in line
            service.terminate()
            waiter.join(10)
            service.start()


def long_wait(log: bytes) -> bytes | None:
    return next((line for line in log.splitlines() if b"long lock wait" in line), None)
