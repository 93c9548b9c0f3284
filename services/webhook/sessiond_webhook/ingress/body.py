"""How a body arrives: at most so large, in at most so long, and together with all others at most so many bytes.

A slow sender costs a greenlet and what it has sent, never what it says that it will send.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

from sessiond_webhook.ingress.problems import Problem

LIMIT: Final = 25 * 2**20
"""GitHub's own cap on a payload, in bytes (docs.github.com, "Webhook events and payloads")."""
PIECE: Final = 65_536

Bound = Callable[[float, Exception], AbstractContextManager[Any]]
"""Raises the exception inside the block once these seconds are over: gevent.Timeout."""


class Budget:
    """Bytes of bodies in flight in this process. For greenlets: nothing here yields."""

    def __init__(self, most: int) -> None:
        self._left = most

    def take(self, count: int) -> None:
        """Raises Problem `busy` when there are not so many."""
        if count > self._left:
            raise Problem("busy", "Too many bytes of bodies are in flight; send it again")
        self._left -= count

    def give(self, count: int) -> None:
        """They are free again."""
        self._left += count


class Arrival:
    """Reads bodies. `seconds` is how long one may take."""

    def __init__(self, budget: Budget, seconds: float, bound: Bound) -> None:
        self._budget, self._seconds, self._bound = budget, seconds, bound

    @contextmanager
    def body(self, environ: Mapping[str, Any], *, keep: bool) -> Iterator[bytes]:
        """The whole body; its bytes count as in flight inside the block. Without `keep`, only its size is judged.

        Raises Problem: too-large, too-slow, busy, bad-request (it broke off).
        """
        too_slow = Problem("too-slow", f"The body must arrive within {self._seconds:g} seconds")
        held = 0
        parts: list[bytes] = []
        try:
            with self._bound(self._seconds, too_slow):
                for piece in _pieces(environ):
                    if keep:
                        self._budget.take(len(piece))
                        held += len(piece)
                        parts.append(piece)
            yield b"".join(parts)
        finally:
            self._budget.give(held)


def check_declared(environ: Mapping[str, Any]) -> None:
    """Raises Problem `too-large` for a Content-Length above the limit."""
    if (_declared(environ) or 0) > LIMIT:
        raise _too_large()


def _pieces(environ: Mapping[str, Any]) -> Iterator[bytes]:
    declared, size, stream = _declared(environ), 0, environ["wsgi.input"]
    while True:
        try:
            piece: bytes = stream.read(min(PIECE, LIMIT + 1 - size))
        except Problem:
            raise
        except Exception as error:  # gunicorn's errors of chunks and trailers have no common base
            raise Problem("bad-request", "The body broke off, or its chunks are not well-formed") from error
        if not piece:
            break
        size += len(piece)
        if size > LIMIT:
            raise _too_large()
        yield piece
    if declared is not None and size < declared:
        raise Problem("bad-request", "The body is shorter than its Content-Length")


def _declared(environ: Mapping[str, Any]) -> int | None:
    text = environ.get("CONTENT_LENGTH") or ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def _too_large() -> Problem:
    return Problem("too-large", f"The body must not exceed {LIMIT} bytes")
