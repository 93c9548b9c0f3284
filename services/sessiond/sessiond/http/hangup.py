"""Detects that a waiting caller has disconnected. WSGI does not report this, so this module reads the socket."""

import select
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gevent
from gevent.monkey import get_original


def disconnected(environ: Mapping[str, Any]) -> bool:
    """Return whether the caller's connection is already closed, for example after a pause of this process."""
    sock = environ.get("gunicorn.socket")
    if sock is None:
        return False
    poll = get_original("select", "poll")()
    poll.register(sock.fileno(), select.POLLIN)
    if not poll.poll(0):
        return False  # gevent's recv would block here
    try:
        return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return True


@contextmanager
def watched(environ: Mapping[str, Any], hang_up: Callable[[], None]) -> Iterator[None]:
    """Call `hang_up` when the caller's connection closes while the block runs: at most once, in the event loop.

    Data from the caller, such as a pipelined request, is not a hang-up. It ends the watch.
    """
    sock = environ.get("gunicorn.socket")
    if sock is None:
        yield
        return
    watcher = gevent.get_hub().loop.io(sock.fileno(), 1)

    def readable() -> None:
        try:
            data = sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        watcher.stop()
        if not data:
            hang_up()

    watcher.start(readable)
    try:
        yield
    finally:
        watcher.stop()
        watcher.close()
