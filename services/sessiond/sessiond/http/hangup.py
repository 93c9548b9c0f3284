"""Seeing that a parked caller is gone: WSGI never says so, the socket does."""

import select
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gevent
from gevent.monkey import get_original


def gone(environ: Mapping[str, Any]) -> bool:
    """Whether the caller's connection is closed already: who asked while this process stood still may have left."""
    sock = environ.get("gunicorn.socket")
    if sock is None:
        return False
    poll = get_original("select", "poll")()
    poll.register(sock.fileno(), select.POLLIN)
    if not poll.poll(0):
        return False  # a recv of gevent's would wait here
    try:
        return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        return True


@contextmanager
def watched(environ: Mapping[str, Any], gone: Callable[[], None]) -> Iterator[None]:
    """While inside, `gone` is called (from the hub, at most once) when the caller's connection closes.

    Data that arrives meanwhile (a pipelined request) is no hang-up and ends the watch.
    """
    sock = environ.get("gunicorn.socket")
    if sock is None:
        yield
        return
    watcher = gevent.get_hub().loop.io(sock.fileno(), 1)

    def look() -> None:
        try:
            left = sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            left = b""
        watcher.stop()
        if not left:
            gone()

    watcher.start(look)
    try:
        yield
    finally:
        watcher.stop()
        watcher.close()
