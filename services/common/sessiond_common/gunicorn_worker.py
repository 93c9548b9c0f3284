"""gunicorn's gevent worker, but one that leaves as soon as everybody is answered.

gunicorn's own looks once a second whether it is to leave, then waits for connections that are only kept open as if
somebody on them waited, and ends them with an error in the log. Here they are closed at once, so that a restart takes
as long as its answers take. To be named as `worker_class`.
"""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import gevent
from gevent.event import Event
from gevent.pool import Pool
from gevent.server import StreamServer
from gunicorn.workers.ggevent import GeventWorker

BEAT: Final = 1.0
"""Seconds between two signs of life to the master."""


class Worker(GeventWorker):  # type: ignore[misc]
    """One process of a service. Plain HTTP/1.1 only."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._between: dict[object, gevent.Timeout] = {}
        """By greenlet: connections between two requests, or with one that has not wholly arrived."""

    def run(self) -> None:
        """Serves until it is told to leave; then at most `graceful_timeout` seconds for what is being answered."""
        pool = Pool(self.worker_connections)
        servers = [StreamServer(s, handle=partial(self.handle, s), spawn=pool) for s in self.sockets]
        for server in servers:
            if self.cfg.workers > 1:  # as gunicorn does: else one process takes all that wait
                server.max_accept = 1
            server.start()
        while self.alive:
            self.notify()
            self._leaving.wait(BEAT)
        for server in servers:
            server.close()
        self._finish(pool)

    def init_signals(self) -> None:
        self._leaving = Event()
        super().init_signals()

    def handle_exit(self, sig: int, frame: Any) -> None:
        super().handle_exit(sig, frame)
        gevent.spawn(self._leaving.set)  # a signal's handler must not switch

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        """One connection. Whose other end is gone without a word is found out within two minutes."""
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if client.family in (socket.AF_INET, socket.AF_INET6):
            for option, value in ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4)):
                client.setsockopt(socket.IPPROTO_TCP, option, value)
        super().handle(listener, client, addr)

    @contextmanager
    def timeout_ctx(self) -> Iterator[None]:
        """Around the wait for a connection's next request: `keepalive` seconds, none once it is to leave."""
        me = gevent.getcurrent()
        seconds = self.cfg.keepalive if self.alive else 0
        with gevent.Timeout(seconds, False) as timeout:  # type: ignore[arg-type]
            self._between[me] = timeout
            try:
                yield
            finally:
                del self._between[me]

    def _finish(self, pool: Pool) -> None:
        gevent.sleep(0.01)  # a timer, so that sockets are looked at before: a request that is here is answered
        loop = gevent.get_hub().loop
        for greenlet, timeout in self._between.items():
            loop.run_callback(self._close, greenlet, timeout)  # as a timeout that runs out is thrown
        ends = time.monotonic() + self.cfg.graceful_timeout
        while not pool.join(timeout=max(0.0, min(BEAT, ends - time.monotonic()))):
            self.notify()
            if time.monotonic() >= ends:
                self.log.warning("%d connections were not answered in time", len(pool))
                pool.kill(timeout=BEAT)
                return

    def _close(self, greenlet: Any, timeout: gevent.Timeout) -> None:
        if self._between.get(greenlet) is timeout:
            greenlet.throw(timeout)
