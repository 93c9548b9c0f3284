"""The child processes of `make up`: restarts them with growing pauses, and stops them in order.

Each child leads a process group of its own, so that a terminal's Ctrl-C reaches only the parent. The kernel sends
every child SIGTERM when the parent dies.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final

from sessiond_common.parent_death import die_with_parent
from sessiond_common.restart import RestartBackoff

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 30.0
STEADY_SECONDS: Final = 60.0
"""After a child that ran for longer than this, the next pause is the first one again."""


class BadSettings(Exception):
    """A child ended with exit status 2: its settings are not valid, so a restart would not help."""


class Child:
    """One process of `python -m module`. `patience` is the time from its SIGTERM to its SIGKILL, in seconds.

    Use it from the main thread only: the kernel's death signal follows the thread that started the process.
    """

    def __init__(self, name: str, module: str, env: Mapping[str, str], patience: float) -> None:
        self.name, self._module, self._env, self._patience = name, module, dict(env), patience
        self._process: subprocess.Popen[bytes] | None = None
        self._backoff = RestartBackoff(FIRST_PAUSE, LONGEST_PAUSE, STEADY_SECONDS)
        self._began = 0.0
        self._again_at = 0.0
        self._kill_at = 0.0

    def start(self) -> None:
        """Start the process now."""
        self._began = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._module], env=self._env, stdin=subprocess.DEVNULL, start_new_session=True,
            preexec_fn=die_with_parent,
        )  # fmt: skip

    @property
    def running(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def watch(self) -> None:
        """Restart the process if it has ended and its pause is over.

        Raises:
            BadSettings: it ended with exit status 2.
        """
        if self.running:
            return
        now = time.monotonic()
        if self._process is not None:
            status, self._process = self._process.returncode, None
            if status == 2:
                raise BadSettings(self.name)
            pause = self._backoff.pause_after(now - self._began)
            print(f"up: {self.name} ended with status {status}; starting it again in {pause:.1f} s", file=sys.stderr)
            self._again_at = now + pause
        elif now >= self._again_at:
            self.start()

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._kill_at = time.monotonic() + self._patience
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        """Wait for the end after `terminate`. After `patience` seconds, kill the process and its children."""
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, self._kill_at - time.monotonic()))
        except subprocess.TimeoutExpired:
            print(f"up: {self.name} did not stop within {self._patience:g} s; killing it", file=sys.stderr)
            for group in _groups(self._process.pid):
                _kill(group)
            self._process.wait()


def stop(layers: Sequence[Sequence[Child]]) -> None:
    """Stop one layer after the other, and all children of a layer at once."""
    for layer in layers:
        for child in layer:
            child.terminate()
        for child in layer:
            child.wait()


def _groups(pid: int) -> list[int]:
    """Return the process groups of a child and of its own children: an rq work-horse leads one of its own."""
    found = [pid]
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            found += [int(one) for one in file.read().split()]
    except OSError:
        pass  # the process has ended
    return found


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
