"""`/metrics` of a process that takes jobs, served by a small process of its own. Off unless METRICS_PORT is set.

It is a process and not a thread of rq's parent, because a fork copies the locks that other threads hold. The parent
creates the directory in which it and its work-horses count (`job_metrics`), and starts this module. When the parent
ends, even by SIGKILL, this process removes the directory and ends.
"""

import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import FrameType
from typing import Any, Final

from sessiond_common import VERSION
from sessiond_common.metrics.job_metrics import DIRECTORY
from sessiond_common.metrics.settings import MetricsSettings
from sessiond_common.parent_death import die_with_parent

BIND_PATIENCE: Final = 10.0
"""Seconds to wait until the exporter of the previous process has released the port."""
ANSWER_SECONDS: Final = 5.0


@contextlib.contextmanager
def served(name: str, settings: MetricsSettings) -> Iterator[None]:
    """Serve the metrics of this process and its forks inside the `with` block. Does nothing without a port.

    `name` is the first word of the metrics' names.
    """
    if not settings.port:
        yield
        return
    directory = tempfile.mkdtemp(prefix=f"{name}-metrics-")
    os.environ[DIRECTORY] = directory
    # Import it once here, not in each work-horse.
    __import__("prometheus_client")
    # In a session of its own, so that a terminal's Ctrl-C does not end it before a last scrape.
    child = subprocess.Popen(
        [sys.executable, "-m", "sessiond_common.metrics.exporter", name, directory, settings.host, str(settings.port)],
        stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=die_with_parent,
    )  # fmt: skip
    try:
        yield
    finally:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(2.0)
        shutil.rmtree(directory, ignore_errors=True)


def main(name: str, directory: str, host: str, port: str) -> int:
    """Serve until SIGTERM, then remove the directory. Returns 0."""
    signal.signal(signal.SIGTERM, _end)
    with contextlib.suppress(KeyboardInterrupt), _listening(host, int(port), _handler(name, Path(directory))) as server:
        server.serve_forever()
    shutil.rmtree(directory, ignore_errors=True)
    return 0


def _end(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _listening(host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> HTTPServer:
    ends = time.monotonic() + BIND_PATIENCE
    while True:
        try:
            return HTTPServer((host, port), handler)
        except OSError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.1)


def _handler(name: str, directory: Path) -> type[BaseHTTPRequestHandler]:
    from prometheus_client.core import InfoMetricFamily, Metric
    from prometheus_client.registry import Collector

    from sessiond_common.metrics.multiprocess import exposition, merge_dead

    class Build(Collector):
        def collect(self) -> Iterable[Metric]:
            build = {"version": VERSION, "python": platform.python_version()}
            yield InfoMetricFamily(f"{name}_build", "What runs here", value=build)

    class Handler(BaseHTTPRequestHandler):
        timeout = ANSWER_SECONDS

        def do_GET(self) -> None:
            if self.path.partition("?")[0] not in ("/metrics", "/healthz"):
                self.send_error(404)
                return
            merge_dead(directory)
            body = exposition(directory, Build()) if self.path.startswith("/metrics") else b"alive\n"
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Do not log scrapes."""

    return Handler


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
