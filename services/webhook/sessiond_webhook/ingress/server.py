"""The ingress as a service: gunicorn with gevent workers, its parts put together in each, signals.

SIGTERM ends it in order: nothing new is taken, what has arrived is answered. SIGUSR1 writes every stack to stderr.
"""

import faulthandler
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import structlog
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger

from sessiond_common.log import setup as logs
from sessiond_common.metrics.job_metrics import DIRECTORY
from sessiond_webhook.ingress.settings import IngressSettings

log = structlog.get_logger("webhook")

CONNECTIONS: Final = 2_000
"""Open connections a process."""
STOP_SECONDS: Final = 4
"""For what has arrived to be answered, on SIGTERM."""


def serve(settings: IngressSettings) -> None:
    """Runs until SIGTERM or SIGINT."""
    faulthandler.enable()
    directory = tempfile.mkdtemp(prefix="webhook-metrics-")
    # prometheus-client chooses its kind of storage from this when it is imported, which only workers do.
    os.environ[DIRECTORY] = directory
    master = os.getpid()
    try:
        _Server(settings).run()
    finally:
        if os.getpid() == master:
            shutil.rmtree(directory, ignore_errors=True)


class _Server(BaseApplication):  # type: ignore[misc]
    def __init__(self, settings: IngressSettings) -> None:
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        settings = self._settings
        options = {
            "bind": f"{settings.host}:{settings.port}",
            "worker_class": "sessiond_common.gunicorn_worker.Worker",
            "workers": settings.processes,
            "worker_connections": CONNECTIONS,
            "backlog": 2048,
            # Also bounds how long a request's headers may take to arrive.
            "keepalive": max(1, round(settings.arrival_seconds)),
            "timeout": 60,
            "graceful_timeout": STOP_SECONDS + 1,
            "control_socket_disable": True,
            "http_parser": "python",
            "accesslog": None,
            "logger_class": _logger(settings.log_format),
            "when_ready": lambda _: faulthandler.register(signal.SIGUSR1, all_threads=True, chain=True),
            "child_exit": lambda server, worker: _tidy(),
            "post_worker_init": self._signals,
            "proc_name": "webhook",
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """In the worker, after gevent has patched: no connection is ever the master's."""
        logs.configure(self._settings.log_format)
        # A full pool only means that some connections to sessiond are not kept.
        logging.getLogger("urllib3").setLevel(logging.ERROR)
        from sessiond_webhook.ingress.wiring import assemble

        parts = assemble(self._settings)
        parts.warm()
        args = (parts.sweep, self._settings.sweep_seconds)
        threading.Thread(target=_sweep_for_ever, args=args, daemon=True).start()
        return parts.ingress.app()

    def _signals(self, worker: Any) -> None:
        # Through the C handler: it also speaks when the hub is stuck. The master's registration came along with the
        # fork, but gunicorn has put its own handler over it since: without this, registering again would do nothing.
        faulthandler.unregister(signal.SIGUSR1)
        faulthandler.register(signal.SIGUSR1, all_threads=True, chain=False)
        worker.cfg.set("graceful_timeout", STOP_SECONDS)  # the master is the more patient one
        log.info("taking deliveries", pid=os.getpid(), port=self._settings.port)


def _tidy() -> None:
    """In the master: what a process counted that is gone stays counted, in one file."""
    from sessiond_common.metrics.multiprocess import merge_dead

    try:
        merge_dead(Path(os.environ[DIRECTORY]))
    except OSError as error:
        log.warning("metrics of a process that ended are not put together", error=str(error))


def _sweep_for_ever(sweep: Callable[[], object], pause: float) -> None:
    """A greenlet, under gevent's patches. Replicas take turns by themselves."""
    while True:
        time.sleep(pause)
        try:
            sweep()
        except Exception as error:
            log.warning("no sweep", error=repr(error))


def _logger(log_format: str) -> Callable[[Any], Any]:
    class Quiet(Logger):  # type: ignore[misc]
        """gunicorn's own lines through our logging; SIGUSR1 is not for reopening files."""

        def setup(self, cfg: Any) -> None:
            logs.configure(log_format)
            self.loglevel = logging.WARNING
            self.error_log.setLevel(logging.WARNING)
            self.error_log.propagate = True
            self.access_log.disabled = True

        def reopen_files(self) -> None:
            return None

    return Quiet
