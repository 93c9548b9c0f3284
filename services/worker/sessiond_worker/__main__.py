"""`python -m sessiond_worker`: a supervisor that sweeps, and its child, the rq worker that runs tasks.

The child is `python -m sessiond_worker jobs`. The supervisor restarts it when it ends by itself. When the supervisor
dies, the kernel sends the child SIGTERM: its run stops warmly and the next worker continues the task.

The sweep does not run in a thread beside rq's loop: rq forks a work-horse for each job, and a fork copies the locks
that other threads hold. It does not run in rq's loop either, because that loop is busy while a task runs.

SIGTERM, SIGINT   warm: a run that waits ends at once, a turn is cancelled, the next worker continues the task
"""

import faulthandler
import signal
import subprocess
import sys
import threading
import time
from typing import Final

import redis
import structlog

from sessiond_common.env import SettingsError
from sessiond_common.jobs.queue import TASKS, connect
from sessiond_common.jobs.worker import fail, serve
from sessiond_common.log import setup as logs
from sessiond_common.parent_death import die_with_parent
from sessiond_common.restart import RestartBackoff
from sessiond_worker.settings import Settings, from_env
from sessiond_worker.tasks.store import Tasks
from sessiond_worker.tasks.sweep import sweep

log = structlog.get_logger("worker")

STOP_SECONDS: Final = 30.0
FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 10.0
STEADY_SECONDS: Final = 3.0
"""After a child that ran for longer than this, the next pause is the first one again."""


def main(words: list[str]) -> int:
    """Run the supervisor, or with the argument `jobs` the rq worker. Returns 0 after SIGTERM, 2 for bad settings."""
    try:
        settings = from_env()
    except SettingsError as error:
        return fail("worker", error)
    if words == ["jobs"]:
        return serve(TASKS, settings.redis_url, log_format=settings.log_format, metrics=settings.metrics)
    if words:
        return fail("worker", ValueError(f"takes no argument {words[0]!r}"))
    return Supervisor(settings).run()


class Supervisor:
    """One child, and a sweep every `sweep_seconds`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._tasks = Tasks(connect(settings.redis_url))
        self._backoff = RestartBackoff(FIRST_PAUSE, LONGEST_PAUSE, STEADY_SECONDS)
        self._stopping = False
        self._signalled = threading.Event()
        """Set by every signal, so that a signal ends every wait."""

    def run(self) -> int:
        """Supervise until SIGTERM or SIGINT. Returns 0."""
        faulthandler.enable()
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        logs.configure(self._settings.log_format)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGCHLD, lambda *_: self._signalled.set())
        child, started, next_sweep = self._start(), time.monotonic(), time.monotonic()
        while not self._stopping:
            if child.poll() is not None:
                pause = self._backoff.pause_after(time.monotonic() - started)
                log.warning("the rq worker ended by itself; restarting it", status=child.returncode, again_in=pause)
                self._wait(pause)
                child, started = self._start(), time.monotonic()
            if time.monotonic() >= next_sweep:
                self._sweep()
                next_sweep = time.monotonic() + self._settings.sweep_seconds
            self._wait(next_sweep - time.monotonic())
        return self._stop(child)

    def _on_stop(self, *_: object) -> None:
        self._stopping = True
        self._signalled.set()

    def _wait(self, seconds: float) -> None:
        self._signalled.wait(max(0.0, seconds))
        self._signalled.clear()

    def _start(self) -> "subprocess.Popen[bytes]":
        # In a session of its own, so that a terminal's Ctrl-C reaches only the supervisor, which then stops the child.
        return subprocess.Popen(
            [sys.executable, "-m", "sessiond_worker", "jobs"], stdin=subprocess.DEVNULL, start_new_session=True,
            preexec_fn=die_with_parent,
        )  # fmt: skip

    def _sweep(self) -> None:
        try:
            for task_id in sweep(self._tasks, self._settings.sweep_seconds):
                log.info("woken by the sweep", task=task_id)
        except redis.RedisError as error:
            log.warning("cannot reach Redis to sweep; the next sweep tries again", error=str(error))

    @staticmethod
    def _stop(child: "subprocess.Popen[bytes]") -> int:
        child.terminate()
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            log.error("the rq worker did not stop in time; killing it")
            child.kill()
            child.wait()
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
