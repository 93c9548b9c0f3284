"""sessionctl and `make demo` as a user runs them, with real processes and exit codes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.servers import TESTS, Sessiond, scripted_env

SESSION = "octo/hello"
ENV = {k: v for k, v in os.environ.items() if not k.startswith(("SESSIOND_", "ANTHROPIC_", "CLAUDE", "REDIS_URL"))}
Start = Callable[..., Sessiond]
Done = subprocess.CompletedProcess[str]


def ctl(service: Sessiond | None, *words: str, **env: str) -> Done:
    where = {"SESSIOND_URL": service.url, "SESSIOND_KEY": service.keys["admin"]} if service else {}
    command = [sys.executable, "-m", "sessiond_ops.sessionctl", *words]
    full = {**ENV, **where, **env}
    return subprocess.run(command, env=full, capture_output=True, text=True, timeout=40)


def test_status_queue_ledger_and_ask_print_the_session(sessiond: Start) -> None:
    service = sessiond(scripted_env())
    asked = ctl(service, "ask", SESSION, "hello\n#say good morning")
    assert (asked.returncode, asked.stdout, asked.stderr) == (0, "good morning\n", "")
    service.client().take(SESSION, key="waits")
    assert "octo/hello: free; 1 wait; agent idle" in ctl(service, "status").stdout
    assert json.loads(ctl(service, "status", SESSION, "--json").stdout)["session"] == SESSION
    assert json.loads(ctl(service, "queue", SESSION, "--json").stdout)[0]["key"] == "waits"
    assert "1 handler p5" in ctl(service, "queue", SESSION).stdout
    entries = [json.loads(line) for line in ctl(service, "ledger", SESSION, "--json").stdout.splitlines()]
    assert [e["event"] for e in entries][-1] == "taken"
    last = json.loads(ctl(service, "ask", SESSION, "#say x", "--json", "--priority", "0").stdout.splitlines()[-1])
    assert (last["event"], last["outcome"], last["text"]) == ("result", "completed", "x")


def test_ledger_follow_prints_a_force_release(sessiond: Start) -> None:
    service = sessiond(scripted_env())
    client = service.client()
    command = [sys.executable, "-m", "sessiond_ops.sessionctl", "ledger", SESSION, "--follow", "--json"]
    env = {**ENV, "SESSIOND_URL": service.url, "SESSIOND_KEY": "admin-key"}
    follower = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    with client.lease(SESSION, key="k") as lease:
        released = ctl(service, "release", SESSION, "--force", "--reason", "the test's")
        assert (released.returncode, released.stdout) == (0, f"ended the lease with fence {lease.fence}\n")
        lease.abandon()
    with client.lease(SESSION, key="again") as lease:
        released = ctl(service, "release", SESSION, "--force", "--reason", "the test's", "--json")
        assert (released.returncode, json.loads(released.stdout)) == (0, {"released": lease.fence})
        lease.abandon()
    assert follower.stdout is not None
    for line in follower.stdout:
        if json.loads(line).get("reason") == "forced":
            break
    follower.send_signal(signal.SIGINT)
    assert follower.wait(5) == 130
    follower.stdout.close()


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("nothing",),
        ("queue",),
        ("queue", "noslash"),
        ("release", SESSION, "--reason", "x"),
        ("ask", SESSION),
        ("status", "--url", "ftp://x"),
        ("ask", SESSION, "x", "--priority", "10"),
        ("ledger", "a/b/c", "--json"),
    ],
)
def test_bad_input_gives_one_line_and_exit_2(words: tuple[str, ...]) -> None:
    done = ctl(None, *words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_an_unreachable_server_gives_one_line_and_exit_1() -> None:
    done = ctl(None, "status", SESSIOND_URL="http://127.0.0.1:1")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


@pytest.mark.parametrize(
    "env",
    [
        {"SESSIOND_PORT": "many"},
        {"SESSIOND_LEASE_TTL": "-1"},
        {"REDIS_URL": "http://x"},
        {"SESSIOND_KEYS_FILE": "/none"},
    ],
)
def test_sessiond_refuses_bad_settings_in_one_line(env: dict[str, str], tmp_path: Path) -> None:
    full = {**ENV, "SESSIOND_STATE_DIR": str(tmp_path), **env}
    command = [sys.executable, "-m", "sessiond.main"]
    done = subprocess.run(command, env=full, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.alone
def test_the_demo_shows_order_preemption_and_continuation(figures: Callable[[str], None]) -> None:
    env = {**ENV, "PYTHONPATH": str(TESTS)}
    done = subprocess.run(
        [sys.executable, str(TESTS / "system" / "demo.py")], env=env, capture_output=True, text=True, timeout=100
    )
    found = json.loads(done.stdout.splitlines()[-1])
    figures(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert found["order"] == ["worker", "A", "B", "C", "worker"]
    assert (found["inversions"], found["answers"], found["preemptions"], found["worker_continued"]) == (0, 3, 1, True)
