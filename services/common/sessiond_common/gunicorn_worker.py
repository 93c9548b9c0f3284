"""A gevent worker for gunicorn that exits as soon as every open request is answered. Use it as `worker_class`.

gunicorn's own worker checks only once a second whether it must stop. It then waits for idle keep-alive connections as
if they were open requests, and logs an error when it ends them. This worker closes idle connections at once.
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

HEARTBEAT_SECONDS: Final = 1.0
"""Seconds between two heartbeats to the master."""


class Worker(GeventWorker):  # type: ignore[misc]
    """One process of a service. It serves plain HTTP/1.1 only."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle: dict[object, gevent.Timeout] = {}
        """By greenlet: connections that wait for a request, or whose request has not arrived completely."""

    def run(self) -> None:
        """Serve until a signal stops it; then finish open requests for at most `graceful_timeout` seconds."""
        pool = Pool(self.worker_connections)
        servers = [StreamServer(s, handle=partial(self.handle, s), spawn=pool) for s in self.sockets]
        for server in servers:
            if self.cfg.workers > 1:  # as gunicorn does; otherwise one process accepts all of them
                server.max_accept = 1
            server.start()
        while self.alive:
            self.notify()
            self._stopping.wait(HEARTBEAT_SECONDS)
        for server in servers:
            server.close()
        self._finish(pool)

    def init_signals(self) -> None:
        self._stopping = Event()
        super().init_signals()

    def handle_exit(self, sig: int, frame: Any) -> None:
        super().handle_exit(sig, frame)
        gevent.spawn(self._stopping.set)  # a signal handler must not switch greenlets

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        """Handle one connection. Keep-alive probes detect a peer that vanished within two minutes."""
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if client.family in (socket.AF_INET, socket.AF_INET6):
            for option, value in ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4)):
                client.setsockopt(socket.IPPROTO_TCP, option, value)
        super().handle(listener, client, addr)

    @contextmanager
    def timeout_ctx(self) -> Iterator[None]:
        """Limit the wait for a connection's next request to `keepalive` seconds, or 0 once the worker stops."""
        me = gevent.getcurrent()
        seconds = self.cfg.keepalive if self.alive else 0
        with gevent.Timeout(seconds, False) as timeout:  # type: ignore[arg-type]
            self._idle[me] = timeout
            try:
                yield
            finally:
                del self._idle[me]

    def _finish(self, pool: Pool) -> None:
        gevent.sleep(0.01)  # lets the loop read its sockets once more: requests that have arrived are answered
        loop = gevent.get_hub().loop
        for greenlet, timeout in self._idle.items():
            loop.run_callback(self._end_wait, greenlet, timeout)  # ends the wait as its timeout does
        ends = time.monotonic() + self.cfg.graceful_timeout
        while not pool.join(timeout=max(0.0, min(HEARTBEAT_SECONDS, ends - time.monotonic()))):
            self.notify()
            if time.monotonic() >= ends:
                self.log.warning("%d connections were not answered in time", len(pool))
                pool.kill(timeout=HEARTBEAT_SECONDS)
                return

    def _end_wait(self, greenlet: Any, timeout: gevent.Timeout) -> None:
        if self._idle.get(greenlet) is timeout:
            greenlet.throw(timeout)
