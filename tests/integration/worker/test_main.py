"""`python -m sessiond_worker` as a user runs it: bad settings, and a supervisor whose child dies."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import psutil
import pytest

from support.servers import eventually
from support.worker.worker_scene import Scene

ENV = {k: v for k, v in os.environ.items() if not k.startswith(("SESSIOND_", "WORKER_", "TASK_", "REDIS_"))}


@pytest.mark.parametrize(
    "env",
    [
        {}, {"SESSIOND_KEY": "k", "REDIS_URL": "http://x"}, {"SESSIOND_KEY": "k", "TASK_TURNS": "none"},
        {"SESSIOND_KEY": "k", "TASK_USD": "-1"}, {"SESSIOND_KEY": "k", "WORKER_LOG_FORMAT": "xml"},
        {"SESSIOND_KEY": "k", "SESSIOND_URL": "loopback"}, {"SESSIOND_KEY_FILE": "/none"},
    ],
)  # fmt: skip
def test_bad_settings_give_one_line_and_exit_2(env: dict[str, str]) -> None:
    command = [sys.executable, "-m", "sessiond_worker"]
    full = {**ENV, **env}
    done = subprocess.run(command, env=full, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


def test_the_supervisor_restarts_its_worker_and_the_worker_ends_with_it(scene: Callable[..., Scene]) -> None:
    s = scene()
    first = s.worker.parent()
    first.kill()
    eventually(lambda: s.worker.parent().pid != first.pid, 10)
    second = s.worker.parent()
    s.worker.process.send_signal(signal.SIGKILL)
    s.worker.process.wait()
    eventually(lambda: not second.is_running() or second.status() == psutil.STATUS_ZOMBIE, 10)
