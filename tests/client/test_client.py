"""The client against a real sessiond, and what it knows when the service does not answer."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import psutil
import pytest

from servers import SERVICES, Sessiond, eventually, scripted_env
from sessiond.client import (
    BadName,
    LeaseLost,
    LeaseSuspended,
    NestedSessions,
    ProblemError,
    SessiondError,
    Timeout,
    Unavailable,
    connect,
)

SESSION = "octo/hello"
Start = Callable[..., Sessiond]


def test_it_is_light() -> None:
    code = "import sys, sessiond.client; print([m for m in ('flask','gevent','redis','gunicorn') if m in sys.modules])"
    env = {**os.environ, "PYTHONPATH": str(SERVICES)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nested_use_is_the_same_lease_and_only_the_outermost_exit_releases(sessiond: Start) -> None:
    client = sessiond(scripted_env()).client()
    with client.lease(SESSION) as outer:
        with client.lease("Octo/Hello") as inner:
            assert inner is outer
        outer.check()
        assert outer.turn("#say still held").result().text == "still held"
        with pytest.raises(NestedSessions), client.lease("octo/other"):
            pass
    assert client.view(SESSION)["holder"] is None


def test_an_exception_in_the_block_releases_too(sessiond: Start) -> None:
    client = sessiond(scripted_env()).client()
    with pytest.raises(ZeroDivisionError), client.lease(SESSION):
        raise ZeroDivisionError
    assert client.view(SESSION)["holder"] is None and client.view(SESSION)["queue"] == []


def test_an_abandoned_lease_expires_and_the_place_is_kept(sessiond: Start) -> None:
    client = sessiond(scripted_env(lease_ttl=0.6)).client()
    with client.lease(SESSION, key="k", lease_ttl=0.6) as lease:
        lease.abandon()
    eventually(lambda: client.view(SESSION)["holder"] is None)
    assert [t["key"] for t in client.view(SESSION)["queue"]] == ["k"]


def test_the_holder_is_told_at_once_that_its_lease_is_lost_and_why(sessiond: Start) -> None:
    client = sessiond(scripted_env()).client()
    told: list[str] = []
    with client.lease(SESSION, key="k", lease_ttl=0.6, on_lost=told.append) as lease:
        client.force_release(SESSION, lease.fence, "the test's")
        assert lease.lost.wait(5)
        assert (lease.state, lease.lost_reason, told) == ("lost", "forced", ["forced"])
        with pytest.raises(LeaseLost, match="forced"):
            lease.check()
        with pytest.raises(LeaseLost):
            lease.turn("too late")


def test_a_lease_that_cannot_be_renewed_is_suspended_and_held_again(sessiond: Start) -> None:
    service = sessiond(scripted_env())
    client = service.client()
    with client.lease(SESSION, lease_ttl=0.9) as lease:
        assert lease.state == "held"
        doomed = [psutil.Process(service.pid), *psutil.Process(service.pid).children()]
        for process in doomed:
            process.send_signal(signal.SIGSTOP)
        try:
            eventually(lambda: lease.state == "suspended", 10)
            with pytest.raises(LeaseSuspended):
                lease.check()
        finally:
            for process in doomed:
                process.send_signal(signal.SIGCONT)
        eventually(lambda: lease.state == "held", 15)


def test_waiting_has_an_end_and_leaves_no_place(sessiond: Start) -> None:
    service = sessiond(scripted_env())
    client = service.client()
    positions: list[int] = []
    with client.lease(SESSION):
        error: list[Exception] = []

        def second() -> None:
            try:
                with service.client().lease(
                    SESSION, timeout=0.5, on_position=lambda answer: positions.append(answer["position"])
                ):
                    pass
            except SessiondError as failure:
                error.append(failure)

        thread = threading.Thread(target=second)
        thread.start()
        thread.join(10)
        assert isinstance(error[0], Timeout) and positions == [1]
        assert client.view(SESSION)["queue"] == []


def test_a_restart_in_the_middle_of_waiting_is_waited_out(sessiond: Start) -> None:
    service = sessiond(scripted_env())
    client = service.client()
    got = threading.Event()

    def waiter() -> None:
        with service.client().lease(SESSION, key="waits"):
            got.set()

    with client.lease(SESSION, key="holds"):
        thread = threading.Thread(target=waiter)
        thread.start()
        eventually(lambda: any(t["present"] for t in client.view(SESSION)["queue"]))
        service.terminate()
        service.start()
        eventually(lambda: any(t["present"] for t in client.view(SESSION)["queue"]), 20)
    assert got.wait(20)
    thread.join()


def test_bad_input_and_nobody_there() -> None:
    with pytest.raises(BadName):
        connect("ftp://x")
    with pytest.raises(BadName), connect("http://127.0.0.1:1").lease("no-slash"):
        pass
    with pytest.raises(Unavailable) as away:
        connect("http://127.0.0.1:1").view(SESSION)
    assert (away.value.type, away.value.sent) == ("unreachable", False)


def test_a_wrong_key_is_a_problem(sessiond: Start) -> None:
    service = sessiond(scripted_env())
    with pytest.raises(ProblemError) as refused:
        connect(service.url, "wrong").view(SESSION)
    assert (refused.value.type, refused.value.status) == ("unauthorized", 401)
