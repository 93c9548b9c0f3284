"""sessionctl, `make up` and `make demo` as a user runs them: real processes, real exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from servers import SERVICES, TESTS, Model, Sessiond, alive, answers, eventually, free_port, scripted_env

SESSION = "octo/hello"
ENV = {k: v for k, v in os.environ.items() if not k.startswith(("SESSIOND_", "ANTHROPIC_", "CLAUDE", "REDIS_URL"))}
Start = Callable[..., Sessiond]
Done = subprocess.CompletedProcess[str]


def ctl(service: Sessiond | None, *words: str, **env: str) -> Done:
    where = {"SESSIOND_URL": service.url, "SESSIOND_KEY": service.keys["admin"]} if service else {}
    command = [sys.executable, "-m", "ops.sessionctl", *words]
    full = {**ENV, "PYTHONPATH": str(SERVICES), **where, **env}
    return subprocess.run(command, env=full, capture_output=True, text=True, timeout=40)


def test_looking_and_asking(sessiond: Start) -> None:
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


def test_following_and_forcing(sessiond: Start) -> None:
    service = sessiond(scripted_env())
    client = service.client()
    command = [sys.executable, "-m", "ops.sessionctl", "ledger", SESSION, "--follow", "--json"]
    env = {**ENV, "PYTHONPATH": str(SERVICES), "SESSIOND_URL": service.url, "SESSIOND_KEY": "admin-key"}
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
def test_bad_input_is_one_line_and_exit_2(words: tuple[str, ...]) -> None:
    done = ctl(None, *words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_nobody_there_is_one_line_and_exit_1() -> None:
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
    full = {**ENV, "PYTHONPATH": str(SERVICES), "SESSIOND_STATE_DIR": str(tmp_path), **env}
    command = [sys.executable, "-m", "sessiond.main"]
    done = subprocess.run(command, env=full, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_make_up_without_a_key_says_so_and_ctrl_c_leaves_no_process(
    tmp_path: Path, figures: Callable[[str], None]
) -> None:
    port = free_port()
    env = {
        **ENV,
        "PYTHONPATH": str(SERVICES),
        "SESSIOND_STATE_DIR": str(tmp_path / "state"),
        "SESSIOND_PORT": str(port),
    }
    log = (tmp_path / "log").open("w")
    up = subprocess.Popen([sys.executable, "-m", "ops.up"], env=env, stdout=log, stderr=log, cwd=tmp_path)
    url, begun = f"http://127.0.0.1:{port}", time.monotonic()
    key = tmp_path / "state" / "keys.d" / "admin"

    def answers() -> bool:
        return (
            key.exists() and ctl(None, "status", SESSIOND_URL=url, SESSIOND_KEY=key.read_text().strip()).returncode == 0
        )

    eventually(answers, 20)
    asked_at = time.monotonic()
    asked = ctl(None, "ask", SESSION, "hello", SESSIOND_URL=url, SESSIOND_KEY=key.read_text().strip())
    took = time.monotonic() - asked_at
    figures(f"ready after {asked_at - begun:.1f} s; ask ended after {took:.1f} s: {asked.stderr.strip()}")
    assert asked.returncode == 1 and "Not logged in" in asked.stderr and asked.stderr.count("\n") == 1
    assert time.monotonic() - asked_at < 20
    family = psutil.Process(up.pid).children(recursive=True)
    assert len(family) >= 3
    up.send_signal(signal.SIGINT)
    assert up.wait(20) == 0
    eventually(lambda: not [p for p in family if alive(p)], 5)
    log.close()
    said = (tmp_path / "log").read_text()
    assert "no model key" in said and said.rstrip().endswith("up: stopped")


def test_ctrl_c_just_after_the_start_is_not_lost(tmp_path: Path) -> None:
    """The worker has been forked and has no handlers yet: without care its master would wait for it in vain."""
    env = {
        **ENV,
        "PYTHONPATH": str(SERVICES),
        "SESSIOND_STATE_DIR": str(tmp_path / "s"),
        "SESSIOND_PORT": str(free_port()),
    }
    up = subprocess.Popen([sys.executable, "-m", "sessiond.up"], env=env, stderr=subprocess.DEVNULL, cwd=tmp_path)
    family = eventually(lambda: three_below(up.pid), 20)
    up.send_signal(signal.SIGINT)
    assert up.wait(9) == 0
    eventually(lambda: not [p for p in family if alive(p)], 5)


def three_below(pid: int) -> list[psutil.Process]:
    """Redis, sessiond and its worker, as soon as all three are there."""
    found = psutil.Process(pid).children(recursive=True)
    return found if len(found) >= 3 else []


def test_up_that_is_killed_takes_everything_along(tmp_path: Path, model: Model) -> None:
    port = free_port()
    env = {
        **ENV,
        "PYTHONPATH": str(SERVICES),
        "SESSIOND_STATE_DIR": str(tmp_path / "s"),
        "SESSIOND_PORT": str(port),
    }
    up = subprocess.Popen([sys.executable, "-m", "ops.up"], env=env, stderr=subprocess.DEVNULL, cwd=tmp_path)
    eventually(lambda: answers(f"http://127.0.0.1:{port}"), 20)
    family = psutil.Process(up.pid).children(recursive=True)
    up.kill()
    up.wait()
    eventually(lambda: not [p for p in family if alive(p)], 20)


def test_the_demo_tells_its_story(figures: Callable[[str], None]) -> None:
    env = {**ENV, "PYTHONPATH": f"{SERVICES}:{TESTS}"}
    done = subprocess.run(
        [sys.executable, str(TESTS / "demo.py")], env=env, capture_output=True, text=True, timeout=100
    )
    found = json.loads(done.stdout.splitlines()[-1])
    figures(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert found["order"] == ["worker", "A", "B", "C", "worker"]
    assert (found["inversions"], found["answers"], found["preemptions"], found["worker_continued"]) == (0, 3, 1, True)
