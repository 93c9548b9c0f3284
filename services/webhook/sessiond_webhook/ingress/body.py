"""Reads request bodies within limits of size, of time, and of bytes in flight in this process.

A slow sender costs one greenlet and the bytes that it has sent, whatever Content-Length it declares.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

from sessiond_webhook.ingress.problems import Problem

LIMIT: Final = 25 * 2**20
"""GitHub's own cap on a payload, in bytes (docs.github.com, "Webhook events and payloads")."""
PIECE_BYTES: Final = 65_536

TimeLimit = Callable[[float, Exception], AbstractContextManager[Any]]
"""Raises the exception inside its block after these seconds. `gevent.Timeout` is one."""


class ByteBudget:
    """The bytes of bodies in flight in this process. Safe for greenlets, because nothing here yields."""

    def __init__(self, most: int) -> None:
        self._left = most

    def take(self, count: int) -> None:
        """Take bytes. Raises Problem `busy` if too few are left."""
        if count > self._left:
            raise Problem("busy", "Too many bytes of bodies are in flight; send it again")
        self._left -= count

    def give(self, count: int) -> None:
        """Give bytes back."""
        self._left += count


class BodyReader:
    """Reads bodies, each within `seconds`."""

    def __init__(self, budget: ByteBudget, seconds: float, time_limit: TimeLimit) -> None:
        self._budget, self._seconds, self._time_limit = budget, seconds, time_limit

    @contextmanager
    def body(self, environ: Mapping[str, Any], *, keep: bool) -> Iterator[bytes]:
        """Yield the whole body. Its bytes count as in flight inside the block.

        Without `keep`, only the size is checked, and the body is empty.

        Raises:
            Problem: `too-large`, `too-slow`, `busy`, or `bad-request` for an incomplete body.
        """
        too_slow = Problem("too-slow", f"The body must arrive within {self._seconds:g} seconds")
        held = 0
        parts: list[bytes] = []
        try:
            with self._time_limit(self._seconds, too_slow):
                for piece in _pieces(environ):
                    if keep:
                        self._budget.take(len(piece))
                        held += len(piece)
                        parts.append(piece)
            yield b"".join(parts)
        finally:
            self._budget.give(held)


def check_declared(environ: Mapping[str, Any]) -> None:
    """Raise Problem `too-large` for a Content-Length above the limit."""
    if (_declared(environ) or 0) > LIMIT:
        raise _too_large()


def _pieces(environ: Mapping[str, Any]) -> Iterator[bytes]:
    declared, size, stream = _declared(environ), 0, environ["wsgi.input"]
    while True:
        try:
            piece: bytes = stream.read(min(PIECE_BYTES, LIMIT + 1 - size))
        except Problem:
            raise
        except Exception as error:  # gunicorn's errors for chunks and trailers have no common base
            raise Problem("bad-request", "The body is incomplete, or its chunks are not well-formed") from error
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
