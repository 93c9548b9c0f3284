"""HTTP to sessiond: one request and its answer, as JSON or as server-sent events.

Nothing here repeats a request, but for one 421 that names the owner. Whoever may safely ask again
does so through `Backoff`, by hand: only the caller of a request knows whether it may run twice.
"""

import random
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, urlencode

import orjson
import urllib3
from urllib3.connection import HTTPConnection

from sessiond.client.errors import BadName, SessiondError, Timeout, Unavailable, from_problem

CONNECT_TIMEOUT: Final = 5.0
READ_TIMEOUT: Final = 15.0
STREAM_TIMEOUT: Final = 35.0
"""Seconds of silence that end a stream: the server writes a comment every 10."""

_NAME: Final = re.compile(r"[a-z0-9._-]{1,100}/[a-z0-9._-]{1,100}")
_SLICE: Final = 65_536

if hasattr(time, "CLOCK_BOOTTIME"):

    def now() -> float:
        """Seconds on a clock that never jumps and also counts while the machine sleeps."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:
    now = time.monotonic


def session_name(name: str) -> str:
    """`owner/repo`, folded to lower case. Raises BadName for anything else."""
    folded = name.lower()
    if not _NAME.fullmatch(folded) or {".", ".."} & set(folded.split("/")):
        raise BadName(f"a session is named owner/repo, of letters, digits and ._- : {name!r}")
    return folded


@dataclass(slots=True)
class Backoff:
    """Waits between attempts: doubling, with jitter, `Retry-After` honoured.

    `patience` is the longest unbroken time, in seconds, that the server may be away; `deadline` the
    moment (on `now()`) at which the caller wants no more attempts, whatever happens.
    """

    patience: float
    deadline: float | None = None
    first: float = 0.05
    most: float = 3.0
    _failures: int = field(default=0, init=False)
    _since: float = field(default=0.0, init=False)

    def reset(self) -> None:
        """The server answered."""
        self._failures = 0

    def left(self) -> float | None:
        """Seconds until the deadline, or None. Raises Timeout when there are none."""
        if self.deadline is None:
            return None
        left = self.deadline - now()
        if left <= 0:
            raise Timeout("not granted in time")
        return left

    def wait(self, failure: SessiondError) -> None:
        """Sleeps before the next attempt. Raises `failure` itself once patience is spent."""
        if not self._failures:
            self._since = now()
        pause = min(self.most, self.first * 2**self._failures) * random.uniform(0.5, 1.0)
        if isinstance(failure, Unavailable) and failure.retry_after is not None:
            # Spread too: everybody was told the same number of seconds.
            pause = max(pause, failure.retry_after * random.uniform(1.0, 1.1))
        self._failures += 1
        if now() + pause - self._since > self.patience:
            raise failure
        left = self.left()
        time.sleep(pause if left is None else min(pause, left))


@dataclass(frozen=True, slots=True)
class Answer:
    """A good answer. `date` is the server's own clock (seconds, whole), None if it sent none."""

    status: int
    body: Any
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One server-sent event. `data` is as it came, undecoded."""

    event: str
    data: bytes
    id: str | None


class Stream:
    """An open answer. Iterate for its events; None stands for a sign of life without one.

    Raises Unavailable when it breaks. An end without a break just ends the iteration.
    """

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self._response = response
        self.headers: Mapping[str, str] = response.headers

    @property
    def is_events(self) -> bool:
        return self.headers.get("Content-Type", "").startswith("text/event-stream")

    def body(self) -> Any:
        """The whole answer as JSON, for a server that did not stream after all."""
        with _faults():
            return _decode(self._response.read())

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
        """Lines without their end; None after a read that completed none.

        Pieces of a long line are joined once: an answer of the agent can be megabytes in one line.
        """
        parts: list[bytes] = []
        while True:
            with _faults():
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
        """Hangs up. Safe to call twice."""
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


class Transport:
    """Connections to sessiond. Threads may share one; `sibling()` has connections of its own."""

    def __init__(self, url: str, key: str | None) -> None:
        if not re.match(r"https?://[^/]", url):
            raise BadName(f"not an http url: {url!r}")
        self.url = url.rstrip("/")
        self._key = key
        self._owners: dict[str, str] = {}
        # Keepalive probes find a server whose machine is gone, in the middle of a wait of minutes.
        options = [*HTTPConnection.default_socket_options, (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
        for name, seconds in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, name):
                options.append((socket.IPPROTO_TCP, getattr(socket, name), seconds))
        self._pool = urllib3.PoolManager(num_pools=8, maxsize=8, retries=False, socket_options=options)

    def sibling(self) -> "Transport":
        """The same door with its own connections, for a thread that must not wait for another."""
        return Transport(self.url, self._key)

    def close(self) -> None:
        self._pool.clear()

    def call(
        self,
        method: str,
        path: str,
        *,
        session: str | None = None,
        body: object = None,
        query: Mapping[str, object] | None = None,
        secret: str | None = None,
        timeout: float = READ_TIMEOUT,
    ) -> Answer:
        """One request. `path` lies below the session (or below `/v1` without one); `timeout` is the
        longest silence in seconds.

        Raises Unavailable (no answer, 502-504), NotOwner (a second 421), or the problem's exception.
        """
        response = self._ask(method, path, session, body, query, secret, timeout, "application/json")
        with _faults():
            data = response.read()
        return Answer(response.status, _decode(data), response.headers)

    def stream(
        self,
        method: str,
        path: str,
        *,
        session: str,
        body: object = None,
        query: Mapping[str, object] | None = None,
        secret: str | None = None,
        timeout: float = STREAM_TIMEOUT,
    ) -> Stream:
        """One request whose answer comes as it happens. Raises as `call` does."""
        accept = "text/event-stream, application/json;q=0.5"
        return Stream(self._ask(method, path, session, body, query, secret, timeout, accept))

    def _ask(
        self,
        method: str,
        path: str,
        session: str | None,
        body: object,
        query: Mapping[str, object] | None,
        secret: str | None,
        timeout: float,
        accept: str,
    ) -> urllib3.BaseHTTPResponse:
        target = "/v1" + (f"/sessions/{quote(session)}" if session else "") + path
        given = {name: value for name, value in (query or {}).items() if value is not None}
        target += f"?{urlencode(given)}" if given else ""
        headers = {"Accept": accept}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        if secret:
            headers["Lease-Secret"] = secret
        data = None if body is None else orjson.dumps(body)
        if data is not None:
            headers["Content-Type"] = "application/json"
        limits = urllib3.Timeout(connect=CONNECT_TIMEOUT, read=timeout)

        def once(base: str) -> urllib3.BaseHTTPResponse:
            with _faults():
                return self._pool.request(
                    method,
                    base + target,
                    body=data,
                    headers=headers,
                    timeout=limits,
                    retries=False,
                    redirect=False,
                    preload_content=False,
                )

        return self._follow(session or "", once)

    def _follow(self, session: str, once: Callable[[str], urllib3.BaseHTTPResponse]) -> urllib3.BaseHTTPResponse:
        """The answer of the session's owner: where we last found it, else where a 421 points, once."""
        base = self._owners.get(session, self.url)
        try:
            response = once(base)
        except Unavailable:
            # Whoever owned it is gone; the instance we were told about knows, or will be, the next.
            self._owners.pop(session, None)
            raise
        if response.status == 421:
            failure = _failure(response)
            owner = getattr(failure, "owner_url", None)
            self._owners.pop(session, None)
            if base != self.url:
                owner = self.url
            if not isinstance(owner, str) or not re.match(r"https?://[^/]", owner):
                raise failure
            response = once(owner.rstrip("/"))
            if response.status < 300:
                self._owners[session] = owner.rstrip("/")
        if response.status >= 300:
            raise _failure(response)
        return response


@contextmanager
def _faults() -> Iterator[None]:
    """urllib3's faults as Unavailable. Whether the request was sent is known only for a refused connection."""
    try:
        yield
    except (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError) as error:
        raise Unavailable("unreachable", str(error), sent=False) from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise Unavailable("unreachable", f"the connection broke: {error}") from error


def _decode(data: bytes) -> Any:
    if not data:
        return None
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise Unavailable("unreachable", f"an answer that is not JSON: {error}") from error


def _failure(response: urllib3.BaseHTTPResponse) -> SessiondError:
    """The exception for an error answer, whatever its body is."""
    with _faults():
        data = response.read()
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError:
        body = {}
    after = response.headers.get("Retry-After", "")
    retry_after = float(after) if re.fullmatch(r"\d{1,6}", after) else None
    return from_problem(response.status, body if isinstance(body, dict) else {}, retry_after)
