"""`sessionctl task …` as a user runs it: real processes, real exit codes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.servers import Redis
from support.worker.worker_scene import SESSION, Scene, line

ENV = {k: v for k, v in os.environ.items() if not k.startswith(("SESSIOND_", "WORKER_", "TASK_", "REDIS_"))}
Done = subprocess.CompletedProcess[str]


def ctl(url: str | None, *words: str, stdin: str = "", **env: str) -> Done:
    command = [sys.executable, "-m", "sessiond_ops.sessionctl", "task", *words]
    full = {**ENV, **({"REDIS_URL": url} if url else {}), **env}
    return subprocess.run(command, env=full, input=stdin, capture_output=True, text=True, timeout=20)


def test_a_task_can_be_added_shown_cancelled_and_retried_from_the_command_line(redis_server: Redis) -> None:
    url = redis_server.url
    made = ctl(url, "add", SESSION, "A title", "Do it.", "--key", "k", "--turns", "3", "--usd", "1.5")
    assert (made.returncode, made.stderr) == (0, "")
    task_id = made.stdout.strip()
    assert ctl(url, "add", SESSION, "Another title", "--key", "k").stdout.strip() == task_id
    assert ctl(url, "list").stdout == f"{task_id} {SESSION} queued: A title\n"
    shown = json.loads(ctl(url, "show", task_id, "--json").stdout)
    assert (shown["state"], shown["budget"]) == ("queued", {"turns": 3, "minutes": None, "usd": 1.5})
    assert "state          queued" in ctl(url, "show", task_id).stdout
    assert ctl(url, "cancel", task_id, USER="ann").stdout == "cancelled\n"
    assert [t["reason"] for t in json.loads(ctl(url, "list", "--json").stdout)] == ["cancelled by ann"]
    again = ctl(url, "cancel", task_id)
    assert (again.returncode, again.stderr) == (1, "sessionctl: a task that is cancelled does not accept cancel\n")
    assert ctl(url, "retry", task_id, "--json").returncode == 0
    assert ctl(url, "list", SESSION, "--state", "queued").stdout.count("\n") == 1
    assert ctl(url, "list", "octo/other").stdout == "no tasks\n"
    piped = ctl(url, "add", SESSION, "From stdin", "-", "--json", stdin="Line one.\nLine two.")
    assert json.loads(piped.stdout)["title"] == "From stdin"


def test_a_cancel_from_the_command_line_stops_a_turn(scene: Callable[..., Scene]) -> None:
    s = scene()
    task = s.add(line("done", tokens="6000", pace="10ms"))
    s.in_turn()
    assert ctl(s.redis_server.url, "cancel", task.id).returncode == 0
    assert s.wait_for_end(task, 10).state == "cancelled"
    assert s.client.view(SESSION)["holder"] is None


def test_the_socket_of_the_embedded_server_is_found(redis_server: Redis, tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    (tmp_path / "redis" / "redis.sock").symlink_to(redis_server.url.removeprefix("unix://"))
    assert ctl(None, "list", SESSIOND_STATE_DIR=str(tmp_path)).stdout == "no tasks\n"


@pytest.mark.parametrize(
    "words",
    [
        (), ("nothing",), ("add",), ("add", "noslash", "A title"), ("add", SESSION, " "), ("show",),
        ("add", SESSION, "A title", "--turns", "0"), ("add", SESSION, "A title", "--usd", "nan"),
        ("list", "--state", "none"),
    ],
)  # fmt: skip
def test_bad_input_gives_one_line_and_exit_2(redis_server: Redis, words: tuple[str, ...]) -> None:
    done = ctl(redis_server.url, *words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr


def test_an_unknown_task_gives_one_line_and_exit_1(redis_server: Redis) -> None:
    for done in (ctl(redis_server.url, "show", "task-none-1"), ctl("redis://127.0.0.1:1/0", "list")):
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
