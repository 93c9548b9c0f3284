"""`make up` as a user runs it: every process, an outbox instead of GitHub, Ctrl-C, and processes that die."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from support.servers import alive, eventually, free_port, scripted_env
from support.webhook import payloads

SESSION = "octo/hello"
DROPPED = ("SESSIOND_", "ANTHROPIC_", "CLAUDE", "REDIS_URL", "GITHUB_", "WEBHOOK_", "BOT_", "OUTBOX_DIR")
Done = subprocess.CompletedProcess[str]
PROCESSES = (
    "sessiond.main", "sessiond_webhook", "sessiond_webhook.handler", "sessiond_webhook.handler",
    "sessiond_webhook.poster", "sessiond_worker",
)  # fmt: skip


class Up:
    """One `make up` with its own ports."""

    def __init__(self, place: Path, **env: str) -> None:
        self.state, self.port = place / "state", free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(DROPPED)}
        self.env = {
            **kept, "SESSIOND_STATE_DIR": str(self.state),
            "SESSIOND_PORT": str(self.port), "WEBHOOK_PORT": str(free_port()), "SWEEP_SECONDS": "1", **env,
        }  # fmt: skip
        self.log = place / "log"
        with self.log.open("w") as log:
            command = [sys.executable, "-m", "sessiond_ops.up"]
            self.process = subprocess.Popen(command, env=self.env, stdout=log, stderr=log, cwd=place)
        self.seen: dict[int, psutil.Process] = {}

    def ctl(self, *words: str) -> Done:
        """Run sessionctl in the same directory, as from a second terminal."""
        command = [sys.executable, "-m", "sessiond_ops.sessionctl", *words]
        env = {**self.env, "SESSIOND_URL": self.url}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=40)

    def answers(self) -> bool:
        return (self.state / "keys.d" / "admin").exists() and self.ctl("status").returncode == 0

    def descendants(self) -> list[psutil.Process]:
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            found = []
        self.seen |= {p.pid: p for p in found}
        return found

    def modules(self) -> list[tuple[str, psutil.Process]]:
        """Return the processes that `up` itself started, with their modules."""
        found = []
        for child in psutil.Process(self.process.pid).children():
            try:
                words = child.cmdline()
            except psutil.Error:
                continue  # the process has just ended
            if "-m" in words:
                found.append((words[words.index("-m") + 1], child))
        return found

    def complete(self) -> bool:
        return sorted(name for name, _ in self.modules()) == sorted(PROCESSES)

    def ctrl_c(self, seconds: float = 20) -> int:
        self.descendants()
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(seconds)

    def left(self) -> list[psutil.Process]:
        return [p for p in self.seen.values() if alive(p)]

    def close(self) -> None:
        self.descendants()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        eventually(
            lambda: not self.left(),
            25,
            lambda: f"nothing left: {[(p.pid, p.cmdline()) for p in self.left()]}\n{self.log.read_text()}",
        )


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def start(**env: str) -> Up:
        started.append(Up(tmp_path, **env))
        return started[-1]

    yield start
    for one in started:
        one.close()


def test_up_without_a_key_prints_a_warning_and_ctrl_c_leaves_no_process(
    up: Callable[..., Up], figures: Callable[[str], None]
) -> None:
    begun = time.monotonic()
    running = up()
    eventually(running.answers, 20)
    asked_at = time.monotonic()
    asked = running.ctl("ask", SESSION, "hello")
    took = time.monotonic() - asked_at
    figures(f"ready after {asked_at - begun:.1f} s; ask ended after {took:.1f} s: {asked.stderr.strip()}")
    assert asked.returncode == 1 and "Not logged in" in asked.stderr and asked.stderr.count("\n") == 1
    assert took < 20
    eventually(running.complete, 10)
    assert running.ctrl_c() == 0
    eventually(lambda: not running.left(), 5, f"{running.left()}")
    log = running.log.read_text()
    assert "no model key" in log and "no GitHub token" in log and log.rstrip().endswith("up: stopped")


def test_a_signed_comment_ends_in_the_outbox_and_a_task_is_done(up: Callable[..., Up], tmp_path: Path) -> None:
    running = up(**scripted_env(), BOT_LOGIN="helper[bot]")
    eventually(running.answers, 20)
    eventually(running.complete, 10)
    delivery = tmp_path / "delivery.json"
    delivery.write_text(json.dumps(payloads.comment("IC_up", "@helper what is this?\n#say an answer")))
    send = ("send", str(delivery), "--event", "issue_comment")
    sent = eventually(lambda: (s := running.ctl(*send)).returncode == 0 and s)
    assert sent.stderr == ""
    outbox = running.state / "outbox"
    answered = lambda: [f for f in outbox.rglob("*.md") if "an answer" in f.read_text()]  # noqa: E731
    assert len(eventually(answered, 30, running.log.read_text)) == 1
    done = json.dumps({"outcome": "done", "note": "it is done"})
    task = running.ctl("task", "add", SESSION, "Do it", f"#lines I did it.|{done}").stdout.strip()
    shown = lambda: json.loads(running.ctl("task", "show", task, "--json").stdout)["state"] == "done"  # noqa: E731
    eventually(shown, 30, running.log.read_text)
    unsigned = running.ctl(*send, "--secret", "another secret")
    assert unsigned.returncode == 1 and unsigned.stderr.count("\n") == 1
    assert running.ctrl_c() == 0
    eventually(lambda: not running.left(), 5, f"{running.left()}")


def test_a_process_that_dies_is_restarted_and_nothing_is_lost(up: Callable[..., Up]) -> None:
    running = up(**scripted_env())
    eventually(running.answers, 20)
    eventually(running.complete, 10)
    assert running.ctl("ask", SESSION, "#say before").stdout == "before\n"
    redis = [p for p in running.descendants() if "redis.sock" in " ".join(p.cmdline())]
    assert len(redis) == 1
    for one in [*redis, *(process for _, process in running.modules())]:
        one.kill()
    eventually(lambda: running.complete() and running.answers(), 30, running.log.read_text)
    asked = eventually(lambda: (a := running.ctl("ask", SESSION, "#history\n#say x")).returncode == 0 and a, 40)
    assert "before" in asked.stdout
    assert running.log.read_text().count("again in") >= len(PROCESSES)


def test_ctrl_c_just_after_the_start_is_not_lost(up: Callable[..., Up]) -> None:
    """A forked gunicorn worker that has no signal handlers yet must not keep its master waiting."""
    running = up()
    eventually(lambda: len(running.descendants()) >= 3, 20)
    assert running.ctrl_c(12) == 0
    eventually(lambda: not running.left(), 5, f"{running.left()}")


def test_a_killed_up_leaves_no_process(up: Callable[..., Up]) -> None:
    running = up(**scripted_env())
    eventually(running.answers, 20)
    eventually(running.complete, 10)
    running.descendants()
    running.process.kill()
    running.process.wait()
    eventually(lambda: not running.left(), 25, f"{running.left()}")


def test_sigusr1_prints_the_stack(up: Callable[..., Up]) -> None:
    running = up()
    eventually(running.answers, 20)
    running.process.send_signal(signal.SIGUSR1)
    eventually(lambda: "(most recent call first)" in running.log.read_text() and "up.py" in running.log.read_text(), 5)


@pytest.mark.parametrize("env", [{"WEBHOOK_PORT": "many"}, {"UP_HANDLERS": "0"}, {"TRIGGER": "perhaps"}])
def test_bad_settings_give_one_line_and_exit_2(up: Callable[..., Up], env: dict[str, str]) -> None:
    running = up(**env)
    assert running.process.wait(30) == 2
    assert next(iter(env)) in running.log.read_text()
