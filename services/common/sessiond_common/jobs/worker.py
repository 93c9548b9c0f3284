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

from sessiond_common.jobs.queue import MONITORING_SECONDS, TASKS, Jobs, connect
from sessiond_common.log import setup as logs
from sessiond_common.metrics.exporter import served
from sessiond_common.metrics.settings import OFF, MetricsSettings
from sessiond_common.restart import RestartBackoff

log = structlog.get_logger("base.process")

MAINTENANCE_SECONDS: Final = 30
FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 10.0
STEADY_SECONDS: Final = 10.0
"""After an rq loop that ran for longer than this, the next pause is `FIRST_PAUSE` again."""
STOP_SIGNAL: Final = signal.SIGUSR2
"""The signal by which a parent asks its work-horse for a warm shutdown. A terminal never sends it."""

_stopping = threading.Event()
_interruptible = False


class Stopped(BaseException):
    """The process stops. Raised in the main thread inside `interruptible`.

    It is not an Exception, so that `except Exception` does not catch it.
    """


def stopping() -> threading.Event:
    """Return an event that is set once the process stops. A job that only waits must then end; others may finish."""
    return _stopping


def stop_self() -> None:
    """Stop this process as after a SIGTERM to its parent. Any thread of a job may call it."""
    _stopping.set()
    os.kill(os.getpid(), STOP_SIGNAL)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let a warm shutdown raise Stopped in the `with` block, even in a blocking call. Use it in a job's main thread."""
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
    """Whether a signal asked this worker to stop. A loop that ends without such a signal starts again."""
    stop_requested_before: Callable[[], bool] = staticmethod(lambda: False)
    """Whether a signal came before rq installed its handlers."""

    def _install_signal_handlers(self) -> None:
        """Also handle a signal that came before; otherwise it would be lost, and the process would not stop."""
        super()._install_signal_handlers()  # type: ignore[no-untyped-call]
        if self.stop_requested_before():
            self.stop_requested = self._stop_requested = True

    def handle_warm_shutdown_request(self) -> None:
        self.stop_requested = True
        _stopping.set()  # for a work-horse that is being forked
        if self.horse_pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.horse_pid, STOP_SIGNAL)

    def _shutdown(self) -> None:
        """Stop even while Redis is away. rq asks Redis whether a job runs, and the error would lose the signal."""
        try:
            super()._shutdown()  # type: ignore[no-untyped-call]
        except (redis.ConnectionError, redis.TimeoutError):
            if not self.horse_pid:
                raise StopRequested from None
            self._stop_requested = True

    def maintain_heartbeats(self, job: Job, execution: Execution) -> None:
        """Go on while Redis is away. Otherwise rq's loop would end and leave the work-horse without a parent."""
        try:
            super().maintain_heartbeats(job, execution)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            log.warning("cannot reach Redis; the job goes on", job=job.id, error=str(error))

    def setup_work_horse_signals(self) -> None:
        super().setup_work_horse_signals()  # type: ignore[no-untyped-call]
        # A SIGTERM to the whole process group must not kill a job that its parent lets finish.
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


def serve(
    queue: str,
    redis_url: str,
    *,
    log_format: str = "console",
    scheduler: bool = False,
    metrics: MetricsSettings = OFF,
) -> int:
    """Take jobs from `queue` until SIGTERM or SIGINT; wait while Redis is away. Returns the exit status.

    `metrics` says where the metrics of its jobs are served (`metrics.exporter`). With `scheduler`, the process also
    enqueues delayed jobs that are due.
    """
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    logs.configure(log_format)
    for name in ("rq", "rq.worker", "rq.scheduler", "rq.job"):  # rq sets levels of its own for these
        logging.getLogger(name).setLevel(logging.WARNING)
    # Work-horses inherit it. Without it, the signal would kill one that has no handler of its own yet.
    signal.signal(STOP_SIGNAL, _on_stop_signal)
    with served("worker" if queue == TASKS else "webhook", metrics):
        return _until_stopped(queue, redis_url, scheduler)


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
            log.warning("rq's loop ended by itself; restarting it", queue=queue, again_in=pause)
            signals.wait(pause)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            if _stopping.is_set():
                return 0
            signals.install()
            pause = backoff.pause_after(time.monotonic() - began)
            log.warning("cannot reach Redis; retrying", queue=queue, error=str(error), again_in=pause)
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
    """Handles SIGTERM and SIGINT while no rq worker runs."""

    def __init__(self) -> None:
        self.received, self._pid = False, os.getpid()
        self.install()

    def install(self) -> None:
        """Install the handlers. Call it again after rq's loop, which does not remove its own handlers."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # rq's scheduler without handlers of its own yet; its parent waits for it
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
