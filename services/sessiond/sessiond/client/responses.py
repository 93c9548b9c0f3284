"""Responses of sessiond: JSON, server-sent events, problems, and broken connections."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import orjson
import urllib3

from sessiond.client.errors import SessiondError, Unavailable, from_problem

_SLICE: Final = 65_536


@dataclass(frozen=True, slots=True)
class ApiResponse:
    """A successful response with its decoded JSON body."""

    status: int
    body: Any
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One server-sent event. `data` is not decoded."""

    event: str
    data: bytes
    id: str | None


class Stream:
    """An open response. Iterate over its events. None means that data arrived that completes no event.

    Raises:
        Unavailable: during the iteration, when the connection breaks. A regular end just ends the iteration.
    """

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self._response = response
        self.headers: Mapping[str, str] = response.headers

    def __iter__(self) -> Iterator[ServerEvent | None]:
        lines: list[bytes] = []
        for line in self._lines():
            if line is None:
                yield None
            elif line:
                lines.append(line)
            elif lines:
                event = _event(lines)
                lines = []
                if event is not None:
                    yield event

    def _lines(self) -> Iterator[bytes | None]:
        """Yield lines without their line ends, and None after a read that completes none.

        The pieces of a long line are joined once: one line of the agent can have megabytes.
        """
        parts: list[bytes] = []
        while True:
            with connection_errors():
                piece = self._response.read1(_SLICE)
            if not piece:
                return
            *whole, rest = piece.split(b"\n")
            if not whole:
                yield None
            for line in whole:
                parts.append(line)
                yield b"".join(parts).removesuffix(b"\r")
                parts = []
            if rest:
                parts.append(rest)

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._response.close()


def _event(lines: list[bytes]) -> ServerEvent | None:
    name, ident, data = "message", None, []
    for line in lines:
        label, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if label == b"event":
            name = value.decode()
        elif label == b"id":
            ident = value.decode()
        elif label == b"data":
            data.append(value)
    return ServerEvent(name, b"\n".join(data), ident) if data else None


@contextmanager
def connection_errors() -> Iterator[None]:
    """Convert urllib3's errors to Unavailable. Only after a refused connection is it certain that nothing was sent."""
    try:
        yield
    except (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError) as error:
        raise Unavailable("unreachable", str(error), sent=False) from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise Unavailable("unreachable", f"the connection broke: {error}") from error


def decode(data: bytes) -> Any:
    if not data:
        return None
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise Unavailable("unreachable", f"the response is not JSON: {error}") from error


def failure_of(response: urllib3.BaseHTTPResponse) -> SessiondError:
    """Return the exception for an error response. Its body may be anything."""
    with connection_errors():
        data = response.read()
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError:
        body = {}
    after = response.headers.get("Retry-After", "")
    retry_after = float(after) if re.fullmatch(r"\d{1,6}", after) else None
    return from_problem(response.status, body if isinstance(body, dict) else {}, retry_after)
