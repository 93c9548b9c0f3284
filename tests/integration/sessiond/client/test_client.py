"""The client with a real sessiond, also while the service does not answer."""

import contextvars
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis as redis_library

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
from sessiond.client.lease import Lease
from support.servers import Redis, Sessiond, eventually, scripted_env

SESSION = "octo/hello"
Start = Callable[..., Sessiond]


def test_the_client_imports_no_server_libraries() -> None:
    code = "import sys, sessiond.client; print([m for m in ('flask','gevent','redis','gunicorn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nested_blocks_share_a_lease_and_only_the_outermost_exit_releases_it(sessiond: Start) -> None:
    client = sessiond(scripted_env()).client()
    with client.lease(SESSION) as outer:
        with client.lease("Octo/Hello") as inner:
            assert inner is outer
        outer.check()
        assert outer.turn("#say still held").result().text == "still held"
        with pytest.raises(NestedSessions), client.lease("octo/other"):
            pass
    assert client.view(SESSION)["holder"] is None


def test_an_exception_in_the_block_releases_the_lease(sessiond: Start) -> None:
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


def test_the_holder_learns_at_once_that_its_lease_is_lost_and_why(sessiond: Start) -> None:
    client = sessiond(scripted_env()).client()
    reasons: list[str] = []
    with client.lease(SESSION, key="k", lease_ttl=0.6, on_lost=reasons.append) as lease:
        client.force_release(SESSION, lease.fence, "the test's")
        assert lease.lost.wait(5)
        assert (lease.state, lease.lost_reason, reasons) == ("lost", "forced", ["forced"])
        with pytest.raises(LeaseLost, match="forced"):
            lease.check()
        with pytest.raises(LeaseLost):
            lease.turn("too late")


def test_a_lease_is_suspended_while_it_cannot_be_renewed(sessiond: Start) -> None:
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


def test_a_process_forked_inside_the_block_releases_nothing(sessiond: Start) -> None:
    service = sessiond(scripted_env())
    code = f"""
import os, sys
from sessiond.client import connect
with connect({service.url!r}, {service.keys["admin"]!r}).lease({SESSION!r}) as lease:
    if os.fork() == 0:
        sys.exit(7)
    print(os.waitstatus_to_exitcode(os.wait()[1]), lease.turn("#say still held").result().text)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "7 still held"


def test_a_lease_that_the_service_does_not_know_is_lost(sessiond: Start, redis_server: Redis, tmp_path: Path) -> None:
    """Redis and sessiond lose the grant. The holder must learn of the loss, although the service knows no reason."""
    service = sessiond(scripted_env())
    with service.client().lease("octo/other"):
        redis_server.copy(tmp_path / "older")
    with service.client().lease(SESSION, lease_ttl=1.5) as lease:
        service.kill9()
        redis_server.kill9()
        redis_server.restore_data(tmp_path / "older")
        redis_server.start()
        service.start()
        assert lease.lost.wait(30)
        assert (lease.state, lease.lost_reason) == ("lost", "unknown")


def test_a_wait_that_times_out_leaves_no_ticket(sessiond: Start) -> None:
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


def test_a_wait_survives_a_restart_of_the_server(sessiond: Start) -> None:
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


def test_bad_names_and_an_unreachable_server_raise() -> None:
    with pytest.raises(BadName):
        connect("ftp://x")
    with pytest.raises(BadName), connect("http://127.0.0.1:1").lease("no-slash"):
        pass
    with pytest.raises(Unavailable) as away:
        connect("http://127.0.0.1:1").view(SESSION)
    assert (away.value.type, away.value.sent) == ("unreachable", False)


def test_a_wrong_key_raises_a_problem(sessiond: Start) -> None:
    service = sessiond(scripted_env())
    with pytest.raises(ProblemError) as refused:
        connect(service.url, "wrong").view(SESSION)
    assert (refused.value.type, refused.value.status) == ("unauthorized", 401)


def test_a_block_that_ends_in_another_context_releases_the_lease(sessiond: Start) -> None:
    """A thread pool or a streaming response closes a generator that holds a lease."""
    client = sessiond(scripted_env()).client()

    def holding() -> Iterator[None]:
        with client.lease(SESSION):
            yield

    here, held = contextvars.copy_context(), holding()
    here.run(next, held)
    contextvars.copy_context().run(held.close)
    assert client.view(SESSION)["holder"] is None
    with_another = here.run(lambda: client.lease("octo/other"))
    here.run(with_another.__enter__)
    here.run(with_another.__exit__, None, None, None)


def test_confirming_the_grant_survives_an_outage(sessiond: Start, redis_server: Redis, tmp_path: Path) -> None:
    held = tmp_path / SESSION / "acted.granted.hold"
    held.parent.mkdir(parents=True)
    held.touch()
    service = sessiond(scripted_env() | {"SESSIOND_HOOKS_DIR": str(tmp_path)})
    client, fences = service.client(), list[int]()

    def holder() -> None:
        with service.client().lease(SESSION) as lease:
            fences.append(lease.fence)

    thread = threading.Thread(target=holder)
    thread.start()
    eventually(held.with_suffix(".reached").exists, 30)
    with redis_library.Redis.from_url(redis_server.url) as redis:
        redis.config_set("maxmemory", "1")
        held.unlink()
        eventually(lambda: b"Redis is away" in service.log_bytes(), 30)
        time.sleep(0.5)
        redis.config_set("maxmemory", "0")
    thread.join(60)
    granted = [e["fence"] for e in client.ledger(SESSION) if e["event"] == "granted"]
    assert len(fences) == 1 and fences == granted and client.view(SESSION)["queue"] == []


def test_a_released_lease_is_not_reported_as_lost(sessiond: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A renewal is sent before the release and arrives after it."""
    client, reasons = sessiond(scripted_env()).client(), list[str]()
    on_its_way, released, renew = threading.Event(), threading.Event(), Lease._renew

    def late(self: Lease, transport: Any) -> None:
        if transport is self._renew_transport:
            on_its_way.set()
            released.wait(60)
        renew(self, transport)

    monkeypatch.setattr(Lease, "_renew", late)
    with client.lease(SESSION, lease_ttl=0.3, on_lost=reasons.append) as lease:
        assert on_its_way.wait(60)
    released.set()
    lease._thread.join(60)
    assert (reasons, lease.lost.is_set()) == ([], False)


def test_an_interrupted_wait_leaves_no_ticket(sessiond: Start) -> None:
    class JobTimeout(BaseException):
        pass

    def breaks_off(_: Mapping[str, Any]) -> None:
        raise JobTimeout

    service = sessiond(scripted_env())
    client, errors = service.client(), list[BaseException]()

    def waits() -> None:
        try:
            with service.client().lease(SESSION, timeout=0.5, on_position=breaks_off):
                pass
        except JobTimeout as error:
            errors.append(error)

    with client.lease(SESSION):
        waiter = threading.Thread(target=waits)
        waiter.start()
        waiter.join(60)
        assert len(errors) == 1 and client.view(SESSION)["queue"] == []
