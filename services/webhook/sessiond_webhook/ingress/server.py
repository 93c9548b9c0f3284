"""Runs the ingress in gunicorn with gevent workers. Each worker process builds its own parts.

On SIGTERM it accepts nothing new and answers the requests that have arrived. SIGUSR1 writes every stack to stderr.
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

from sessiond_common.gunicorn_server import Server, dump_stacks_on_usr1
from sessiond_common.log import setup as logs
from sessiond_common.metrics.job_metrics import DIRECTORY
from sessiond_webhook.ingress.settings import IngressSettings

log = structlog.get_logger("webhook")

CONNECTIONS: Final = 2_000
"""Open connections per process."""
STOP_SECONDS: Final = 4
"""Time after SIGTERM to answer the requests that have arrived, in seconds."""


def serve(settings: IngressSettings) -> None:
    """Serve until SIGTERM or SIGINT."""
    faulthandler.enable()
    directory = tempfile.mkdtemp(prefix="webhook-metrics-")
    # prometheus-client reads this when it is imported, to choose its storage. Only workers import it.
    os.environ[DIRECTORY] = directory
    master = os.getpid()
    try:
        Server(lambda: _application(settings), settings.log_format, _options(settings)).run()
    finally:
        if os.getpid() == master:
            shutil.rmtree(directory, ignore_errors=True)


def _options(settings: IngressSettings) -> dict[str, Any]:
    return {
        "bind": f"{settings.host}:{settings.port}",
        "workers": settings.processes,
        "worker_connections": CONNECTIONS,
        "backlog": 2048,
        # Also bounds how long a request's headers may take to arrive.
        "keepalive": max(1, round(settings.arrival_seconds)),
        "graceful_timeout": STOP_SECONDS + 1,
        # Chained: the master also passes the signal on to its workers.
        "when_ready": lambda _: faulthandler.register(signal.SIGUSR1, all_threads=True, chain=True),
        "child_exit": lambda server, worker: _merge_metrics(),
        "post_worker_init": lambda worker: _after_init(worker, settings.port),
        "proc_name": "webhook",
    }


def _application(settings: IngressSettings) -> Any:
    """Build the application. Call it in the worker, because these imports need gevent's patches."""
    logs.configure(settings.log_format)
    # A full pool only means that some connections to sessiond are not kept.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    from sessiond_webhook.ingress.wiring import assemble

    parts = assemble(settings)
    parts.warm()
    args = (parts.sweep, settings.sweep_seconds)
    threading.Thread(target=_sweep_for_ever, args=args, daemon=True).start()
    return parts.ingress.app()


def _after_init(worker: Any, port: int) -> None:
    dump_stacks_on_usr1()
    worker.cfg.set("graceful_timeout", STOP_SECONDS)  # the master keeps its longer timeout
    log.info("taking deliveries", pid=os.getpid(), port=port)


def _merge_metrics() -> None:
    """In the master: keep the counts of ended processes, in one file."""
    from sessiond_common.metrics.multiprocess import merge_dead

    try:
        merge_dead(Path(os.environ[DIRECTORY]))
    except OSError as error:
        log.warning("cannot merge the metrics of an ended process", error=str(error))


def _sweep_for_ever(sweep: Callable[[], object], pause: float) -> None:
    """Sweep again and again. Under gevent's patches this is a greenlet. `sweep` coordinates the replicas."""
    while True:
        time.sleep(pause)
        try:
            sweep()
        except Exception as error:
            log.warning("cannot sweep; the next sweep tries again", error=repr(error))
