"""A process that takes jobs from one queue: an rq worker with this project's signals, logs and restarts.

    SIGTERM  once: it takes no further job. The running job sees it (`stopping()` is set) and may finish.
             twice: its work-horse is killed. Nothing is lost by that.
    SIGUSR1  the stacks of every thread to stderr, in the parent and in its work-horse.

One queue a process: an rq worker with several queues can lose a job when it is killed before the job starts.
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
STOP_SIGNAL: Final = signal.SIGUSR2
"""What a parent sends its work-horse to stop it warmly. A terminal never sends it."""

_stopping = threading.Event()
_interruptible = False


class Stopped(BaseException):
    """The process stops. Raised in the main thread inside `interruptible`; no Exception, so that no handler of errors
    catches it."""


def stopping() -> threading.Event:
    """Return an event that is set once the process stops. A job that only waits ends then; another may finish."""
    return _stopping


def stop_self() -> None:
    """Inside a job: stop as after a SIGTERM to the parent. Any thread may call it."""
    _stopping.set()
    os.kill(os.getpid(), STOP_SIGNAL)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let a warm shutdown raise Stopped inside it, also out of a blocking call. For a job's main thread."""
    global _interruptible
    if _stopping.is_set():
        raise Stopped
    before, _interruptible = _interruptible, True
    try:
        yield
    finally:
        _interruptible = before


class JobWorker(Worker):
    """An rq worker that passes a warm shutdown on to its work-horse, and survives an outage of Redis during a job."""

    stop_requested = False
    """Whether a signal asked it to stop. Otherwise the end of its loop is an error, and the loop starts again."""
    stop_requested_before: Callable[[], bool] = staticmethod(lambda: False)
    """Whether a signal came before rq installed its handlers."""

    def _install_signal_handlers(self) -> None:
        """Also honour a signal that came before: without this it would be lost, and the process would stay."""
        super()._install_signal_handlers()  # type: ignore[no-untyped-call]
        if self.stop_requested_before():
            self.stop_requested = self._stop_requested = True

    def handle_warm_shutdown_request(self) -> None:
        self.stop_requested = True
        _stopping.set()  # for a work-horse that is forked just now
        if self.horse_pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.horse_pid, STOP_SIGNAL)

    def _shutdown(self) -> None:
        """rq asks Redis whether it is busy. While Redis is away, that error would lose the signal."""
        try:
            super()._shutdown()  # type: ignore[no-untyped-call]
        except (redis.ConnectionError, redis.TimeoutError):
            if not self.horse_pid:
                raise StopRequested from None
            self._stop_requested = True

    def maintain_heartbeats(self, job: Job, execution: Execution) -> None:
        """While Redis is away, rq's loop would end here and leave the work-horse without a parent."""
        try:
            super().maintain_heartbeats(job, execution)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            log.warning("Redis is away, the job goes on", job=job.id, error=str(error))

    def setup_work_horse_signals(self) -> None:
        super().setup_work_horse_signals()  # type: ignore[no-untyped-call]
        # A terminal's SIGTERM to the group must not kill a job that its parent lets finish.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(STOP_SIGNAL, _on_stop_signal)
        faulthandler.register(signal.SIGUSR1, all_threads=True)


def _on_stop_signal(number: int, frame: FrameType | None) -> None:
    _stopping.set()
    if _interruptible:
        raise Stopped


def _work_horse_died(job: Job, pid: int, status: int, usage: Any) -> None:
    log.warning(
        "work-horse ended before its job; a sweep continues its work", job=job.id, description=job.description,
        status=status,
    )  # fmt: skip


def serve(queue: str, redis_url: str, *, log_format: str = "console", scheduler: bool = False) -> int:
    """Take jobs from `queue` until SIGTERM or SIGINT; wait while Redis is away. Returns the exit status.

    With METRICS_PORT set, serves the metrics of its jobs there (`metrics.exporter`). `scheduler`: also enqueue the
    delayed jobs that are due.
    """
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    logs.configure(log_format)
    for name in ("rq", "rq.worker", "rq.scheduler", "rq.job"):  # rq sets levels of its own for these
        logging.getLogger(name).setLevel(logging.WARNING)
    # Work-horses inherit it: the signal would kill one that has not installed a handler of its own yet.
    signal.signal(STOP_SIGNAL, _on_stop_signal)
    try:
        with served("worker" if queue == TASKS else "webhook"):
            return _until_stopped(queue, redis_url, scheduler)
    except SettingsError as error:
        return fail(queue, error)


def _until_stopped(queue: str, redis_url: str, scheduler: bool) -> int:
    signals = _StopSignals()
    backoff = RestartBackoff(FIRST_PAUSE, LONGEST_PAUSE, STEADY_SECONDS)
    while not signals.received:
        began = time.monotonic()
        try:
            if _work(queue, redis_url, scheduler, signals):
                return 0
            signals.install()
            pause = backoff.pause_after(time.monotonic() - began)
            log.warning("rq's loop ended by itself", queue=queue, again_in=pause)
            signals.wait(pause)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            if _stopping.is_set():
                return 0
            signals.install()
            pause = backoff.pause_after(time.monotonic() - began)
            log.warning("Redis is away", queue=queue, error=str(error), again_in=pause)
            signals.wait(pause)
    return 0


def _work(queue: str, redis_url: str, scheduler: bool, signals: "_StopSignals") -> bool:
    """Run rq's loop. Returns whether a signal ended it."""
    connection = connect(redis_url)
    connection.ping()
    worker = JobWorker(
        [Jobs(connection).queue(queue)],
        connection=connection,
        serializer="json",
        job_monitoring_interval=MONITORING_SECONDS,
        maintenance_interval=MAINTENANCE_SECONDS,
        work_horse_killed_handler=_work_horse_died,
    )
    worker.stop_requested_before = lambda: signals.received
    log.info("taking jobs", queue=queue, pid=os.getpid())
    worker.work(with_scheduler=scheduler, logging_level=None)
    return worker.stop_requested


class _StopSignals:
    """SIGTERM and SIGINT while no rq worker runs."""

    def __init__(self) -> None:
        self.received, self._pid = False, os.getpid()
        self.install()

    def install(self) -> None:
        """Install the handlers. rq's loop leaves its own ones behind."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # rq's scheduler, before it has handlers of its own; its parent waits for it
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = True

    def wait(self, seconds: float) -> None:
        """Wait this long, or until a signal comes."""
        ends = time.monotonic() + seconds
        while not self.received and time.monotonic() < ends:
            time.sleep(0.05)


def fail(program: str, error: Exception) -> int:
    """Print one line on stderr and return exit status 2: the settings are not valid."""
    print(f"{program}: {error}", file=sys.stderr)
    return 2
