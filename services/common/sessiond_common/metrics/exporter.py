"""`/metrics` of a process that takes jobs: served by a small process of its own, off unless METRICS_PORT is set.

Not a thread in rq's parent: a fork copies whatever another thread holds at that moment. The parent makes the directory
into which it and its work-horses count (see counting.py) and starts this module by exec; when the parent ends, however
it does, so does this, and the directory goes with it.
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
"""Seconds for the one that was there before to be gone."""
ANSWER_SECONDS: Final = 5.0


@contextlib.contextmanager
def served(name: str, settings: MetricsSettings) -> Iterator[None]:
    """Serve what is counted here and in forks while inside. Without a port in the settings, do nothing.

    `name` is the first word of the metrics' names.
    """
    if not settings.port:
        yield
        return
    directory = tempfile.mkdtemp(prefix=f"{name}-metrics-")
    os.environ[DIRECTORY] = directory
    # Now, once, and not in each work-horse.
    __import__("prometheus_client")
    # A session of its own: a terminal's Ctrl-C is for the parent, and the last scrape may want to see its end.
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
    """Serves until SIGTERM, then removes the directory."""
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

    from sessiond_common.metrics.multiprocess import exposition, tidy

    class Build(Collector):
        def collect(self) -> Iterable[Metric]:
            said = {"version": VERSION, "python": platform.python_version()}
            yield InfoMetricFamily(f"{name}_build", "What runs here", value=said)

    class Handler(BaseHTTPRequestHandler):
        timeout = ANSWER_SECONDS

        def do_GET(self) -> None:
            if self.path.partition("?")[0] not in ("/metrics", "/healthz"):
                self.send_error(404)
                return
            tidy(directory)
            body = exposition(directory, Build()) if self.path.startswith("/metrics") else b"alive\n"
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """A scrape is no event."""

    return Handler


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
