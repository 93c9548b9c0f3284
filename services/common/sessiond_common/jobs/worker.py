"""A process that takes jobs from one queue: an rq worker with this project's signals, logs and patience.

    SIGTERM  once: no further job; the one that runs is told (`stopping()` turns true) and may finish.
             twice: its work-horse is killed; nothing is lost by that.
    SIGUSR1  stacks of every thread to stderr, of the parent and of its work-horse alike.

One queue a process: an rq worker on several can lose a job when it is killed before the job's start.
"""

import contextlib
import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

import redis
import structlog
from rq import Worker
from rq.exceptions import StopRequested
from rq.executions import Execution
from rq.job import Job

from sessiond_common.env import SettingsError
from sessiond_common.jobs.queue import MONITORING_SECONDS, TASKS, Jobs, connect
from sessiond_common.log import setup as logs
from sessiond_common.metrics.exporter import served
from sessiond_common.restart import RestartBackoff

log = structlog.get_logger("base.process")

MAINTENANCE_SECONDS: Final = 30
FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 10.0
STEADY_SECONDS: Final = 10.0
"""An rq loop that ran longer begins with the first pause again."""
TOLD: Final = signal.SIGUSR2
"""What a parent sends its work-horse when it shall stop; a terminal never sends it."""

_stopping = threading.Event()
_breaking = False


class Stopped(BaseException):
    """The process shall stop: raised in the main thread inside `broken_off`. No Exception, so that nobody catches it
    who means a fault."""


def stopping() -> threading.Event:
    """Inside a job: set once the process shall stop. A job that only waits ends then, another may finish."""
    return _stopping


@contextmanager
def broken_off() -> Iterator[None]:
    """Inside it, in a job's main thread, a warm shutdown raises Stopped, out of a blocking call too."""
    global _breaking
    if _stopping.is_set():
        raise Stopped
    before, _breaking = _breaking, True
    try:
        yield
    finally:
        _breaking = before


class JobWorker(Worker):
    """An rq worker whose work-horse hears of a warm shutdown, and which outlives Redis being away during a job."""

    asked = False
    """Whether it was told to stop; else its loop's end is a fault, and it begins anew."""
    told_before: Callable[[], bool] = staticmethod(lambda: False)

    def _install_signal_handlers(self) -> None:
        """What came before rq listens counts too: else it would be lost, and the process would stay."""
        super()._install_signal_handlers()  # type: ignore[no-untyped-call]
        if self.told_before():
            self.asked = self._stop_requested = True

    def handle_warm_shutdown_request(self) -> None:
        self.asked = True
        _stopping.set()  # a work-horse that is forked just now hears of it so
        if self.horse_pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.horse_pid, TOLD)

    def _shutdown(self) -> None:
        """rq asks Redis whether it is busy; while Redis is away the signal would be lost with that question."""
        try:
            super()._shutdown()  # type: ignore[no-untyped-call]
        except (redis.ConnectionError, redis.TimeoutError):
            if not self.horse_pid:
                raise StopRequested from None
            self._stop_requested = True

    def maintain_heartbeats(self, job: Job, execution: Execution) -> None:
        """rq's loop would end here while Redis is away, and leave the work-horse without a parent that watches it."""
        try:
            super().maintain_heartbeats(job, execution)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            log.warning("Redis is away, the job goes on", job=job.id, error=str(error))

    def setup_work_horse_signals(self) -> None:
        super().setup_work_horse_signals()  # type: ignore[no-untyped-call]
        # A terminal's SIGTERM to the group must not cut a job that its parent lets finish.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(TOLD, _told)
        faulthandler.register(signal.SIGUSR1, all_threads=True)


def _told(number: int, frame: FrameType | None) -> None:
    _stopping.set()
    if _breaking:
        raise Stopped


def _horse_killed(job: Job, pid: int, status: int, usage: Any) -> None:
    """The demand or task stands as recorded; the sweep wakes somebody for it again."""
    log.warning("work-horse ended before its job", job=job.id, description=job.description, status=status)


def serve(queue: str, redis_url: str, *, log_format: str = "console", scheduler: bool = False) -> int:
    """Takes jobs from `queue` until SIGTERM or SIGINT; while Redis is away it waits. Returns the exit status.

    With METRICS_PORT set, what its jobs count is served there (see scrape.py).
    """
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    logs.configure(log_format)
    for name in ("rq", "rq.worker", "rq.scheduler", "rq.job"):  # rq sets levels of its own for these
        logging.getLogger(name).setLevel(logging.WARNING)
    # Inherited by work-horses: one that is told before it has a handler of its own would be killed by it.
    signal.signal(TOLD, _told)
    try:
        with served("worker" if queue == TASKS else "webhook"):
            return _until_ended(queue, redis_url, scheduler)
    except SettingsError as error:
        return fail(queue, error)


def _until_ended(queue: str, redis_url: str, scheduler: bool) -> int:
    ended = _Ended()
    backoff = RestartBackoff(FIRST_PAUSE, LONGEST_PAUSE, STEADY_SECONDS)
    while not ended.asked:
        began = time.monotonic()
        try:
            if _work(queue, redis_url, scheduler, ended):
                return 0
            ended.listen()
            pause = backoff.pause_after(time.monotonic() - began)
            log.warning("rq's loop ended by itself", queue=queue, again_in=pause)
            ended.wait(pause)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            if _stopping.is_set():
                return 0
            ended.listen()
            pause = backoff.pause_after(time.monotonic() - began)
            log.warning("Redis is away", queue=queue, error=str(error), again_in=pause)
            ended.wait(pause)
    return 0


def _work(queue: str, redis_url: str, scheduler: bool, ended: "_Ended") -> bool:
    """rq's loop; whether it ended because it was asked to."""
    connection = connect(redis_url)
    connection.ping()
    worker = JobWorker(
        [Jobs(connection).queue(queue)],
        connection=connection,
        serializer="json",
        job_monitoring_interval=MONITORING_SECONDS,
        maintenance_interval=MAINTENANCE_SECONDS,
        work_horse_killed_handler=_horse_killed,
    )
    worker.told_before = lambda: ended.asked
    log.info("taking jobs", queue=queue, pid=os.getpid())
    worker.work(with_scheduler=scheduler, logging_level=None)
    return worker.asked


class _Ended:
    """SIGTERM and SIGINT while no rq worker runs."""

    def __init__(self) -> None:
        self.asked, self._pid = False, os.getpid()
        self.listen()

    def listen(self) -> None:
        """rq's loop leaves its own handlers behind."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # rq's scheduler, which has no handler of its own yet; its parent waits for it
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.asked = True

    def wait(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while not self.asked and time.monotonic() < ends:
            time.sleep(0.05)


def fail(program: str, error: Exception) -> int:
    """One line on stderr, exit status 2: for settings that are not valid."""
    print(f"{program}: {error}", file=sys.stderr)
    return 2
