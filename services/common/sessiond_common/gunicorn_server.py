"""The gunicorn server that sessiond and webhook run: shared options, its logger, and signals.

Import this module only in a process that serves HTTP, because it loads gunicorn.
"""

import faulthandler
import logging
import os
import signal
from collections.abc import Callable, Mapping
from typing import Any, Final

import gevent
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger

from sessiond_common.log import setup as logs

SHARED: Final[Mapping[str, Any]] = {
    "worker_class": "sessiond_common.gunicorn_worker.Worker",
    "timeout": 60,
    "control_socket_disable": True,
    "http_parser": "python",
    "accesslog": None,
}
"""Options of every service. `worker_class` is a name, so that gunicorn decides when to import and patch gevent."""


class Server(BaseApplication):  # type: ignore[misc]
    """gunicorn with `SHARED` and these options. `run` serves until SIGTERM or SIGINT.

    `application` builds the WSGI application. It runs in each worker, after gevent has patched, so that the master
    holds no connection and starts no process.
    """

    def __init__(self, application: Callable[[], Any], log_format: str, options: Mapping[str, Any]) -> None:
        self._application = application
        self._options = {**SHARED, "logger_class": quiet_logger(log_format), **options}
        super().__init__()

    def load_config(self) -> None:
        """Apply the options."""
        for name, value in self._options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """Build the application, in a worker."""
        return self._application()


def quiet_logger(log_format: str) -> type[Any]:
    """gunicorn's logger class: warnings and errors only, through this project's logging."""

    class QuietLogger(Logger):  # type: ignore[misc]
        def setup(self, cfg: Any) -> None:
            logs.configure(log_format)
            self.loglevel = logging.WARNING
            self.error_log.setLevel(logging.WARNING)
            self.error_log.propagate = True
            self.access_log.disabled = True

        def reopen_files(self) -> None:
            """Do nothing: this logger has no files, and SIGUSR1 writes stacks in this project."""

    return QuietLogger


def dump_stacks_on_usr1() -> None:
    """Make SIGUSR1 write every thread's stack to stderr, even while the event loop is stuck.

    Call it again in each worker: after a fork, faulthandler counts as registered, but gunicorn has set its own
    handler since then. Without `unregister`, the second call would do nothing.
    """
    faulthandler.unregister(signal.SIGUSR1)
    faulthandler.register(signal.SIGUSR1, all_threads=True)


def hold_sigterm_in_new_workers() -> None:
    """Fork workers with SIGTERM blocked. `stop_on_sigterm` unblocks it.

    A new worker still has the master's handler, which would ignore the signal. A service that is stopped right after
    its start would then wait for the master's whole `graceful_timeout`.
    """
    master = os.getpid()

    def mask(how: int) -> None:
        if os.getpid() == master:
            signal.pthread_sigmask(how, {signal.SIGTERM})

    os.register_at_fork(before=lambda: mask(signal.SIG_BLOCK), after_in_parent=lambda: mask(signal.SIG_UNBLOCK))


def stop_on_sigterm(stop: Callable[[], None]) -> None:
    """In a worker: on SIGTERM run `stop` in a greenlet first, then gunicorn's own handler."""
    gunicorn_handler = signal.getsignal(signal.SIGTERM)

    def stop_then_exit(number: int, frame: Any) -> None:
        try:
            stop()
        finally:
            if callable(gunicorn_handler):
                gunicorn_handler(number, frame)

    def handle(number: int, frame: Any) -> None:
        gevent.spawn(stop_then_exit, number, frame)  # a signal handler must not switch greenlets

    signal.signal(signal.SIGTERM, handle)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
