"""`python -m sessiond_worker`: a supervisor that sweeps, and below it the rq worker that runs tasks.

The rq worker is `python -m sessiond_worker jobs`.

The sweep is here, and not a thread beside rq's loop, because rq forks a work-horse for each job and a fork copies
whatever another thread holds at that moment; and because rq's parent is busy for as long as a task runs. The
supervisor has one thread and starts its child by exec. A child that ends unasked is started again; a supervisor that
is killed takes its child along, warmly (SIGTERM by the kernel): the task stands and the next worker goes on with it.

    SIGTERM, SIGINT   warm: a run that waits ends at once, a turn is cancelled, the task stands
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
from sessiond_worker.sweep import sweep
from sessiond_worker.tasks.store import Tasks

log = structlog.get_logger("worker")

STOP_SECONDS: Final = 30.0
FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 10.0
STEADY_SECONDS: Final = 3.0
"""A child that lived so long had begun well: its end is no crash loop."""


def main(words: list[str]) -> int:
    """0 after SIGTERM, 2 for bad settings."""
    try:
        settings = from_env()
    except SettingsError as error:
        return fail("worker", error)
    if words == ["jobs"]:
        return serve(TASKS, settings.redis_url, log_format=settings.log_format)
    if words:
        return fail("worker", ValueError(f"takes no argument {words[0]!r}"))
    return Supervisor(settings).run()


class Supervisor:
    """One child, and a sweep every `sweep_seconds`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._tasks = Tasks(connect(settings.redis_url))
        self._asked = False
        self._called = threading.Event()
        """Set by every signal, so that no wait outlasts one."""

    def run(self) -> int:
        """Until SIGTERM or SIGINT."""
        faulthandler.enable()
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        logs.configure(self._settings.log_format)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)
        signal.signal(signal.SIGCHLD, lambda *_: self._called.set())
        backoff = RestartBackoff(FIRST_PAUSE, LONGEST_PAUSE, STEADY_SECONDS)
        child, started, next_sweep = self._start(), time.monotonic(), time.monotonic()
        while not self._asked:
            if child.poll() is not None:
                pause = backoff.pause_after(time.monotonic() - started)
                log.warning("the rq worker ended by itself", status=child.returncode, again_in=pause)
                self._wait(pause)
                child, started = self._start(), time.monotonic()
            if time.monotonic() >= next_sweep:
                self._sweep()
                next_sweep = time.monotonic() + self._settings.sweep_seconds
            self._wait(next_sweep - time.monotonic())
        return self._stop(child)

    def _ask(self, *_: object) -> None:
        self._asked = True
        self._called.set()

    def _wait(self, seconds: float) -> None:
        self._called.wait(max(0.0, seconds))
        self._called.clear()

    def _start(self) -> "subprocess.Popen[bytes]":
        # A session of its own: a terminal's Ctrl-C reaches the supervisor alone, which then asks once.
        return subprocess.Popen(
            [sys.executable, "-m", "sessiond_worker", "jobs"], stdin=subprocess.DEVNULL, start_new_session=True,
            preexec_fn=die_with_parent,
        )  # fmt: skip

    def _sweep(self) -> None:
        try:
            for task_id in sweep(self._tasks, self._settings.sweep_seconds):
                log.info("woken by the sweep", task=task_id)
        except redis.RedisError as error:
            log.warning("no sweep, Redis is away", error=str(error))

    @staticmethod
    def _stop(child: "subprocess.Popen[bytes]") -> int:
        child.terminate()
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            log.error("the rq worker does not end, killed")
            child.kill()
            child.wait()
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
