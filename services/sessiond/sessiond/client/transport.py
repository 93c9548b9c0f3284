"""HTTP requests to sessiond, answered with JSON or with server-sent events.

This module repeats a request only after one 421 that names the owner. Callers retry with `Backoff`: only they
know whether a request may run twice.
"""

import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypedDict, Unpack
from urllib.parse import quote, urlencode

import orjson
import urllib3
from urllib3.connection import HTTPConnection

from sessiond.client.errors import BadName, Unavailable
from sessiond.client.responses import ApiResponse, Stream, connection_errors, decode, failure_of

CONNECT_TIMEOUT: Final = 5.0
READ_TIMEOUT: Final = 15.0
STREAM_TIMEOUT: Final = 35.0
"""Seconds without data that end a stream. The server writes a comment every 10 s."""

_NAME: Final = re.compile(r"[a-z0-9._-]{1,100}/[a-z0-9._-]{1,100}")


def session_name(name: str) -> str:
    """Return the session's name in lower case.

    Raises:
        BadName: it is not `owner/repo`.
    """
    folded = name.lower()
    if not _NAME.fullmatch(folded) or {".", ".."} & set(folded.split("/")):
        raise BadName(f"a session's name must be owner/repo, with letters, digits and ._- only; got {name!r}")
    return folded


class RequestOptions(TypedDict, total=False):
    """The keyword arguments of `Transport.call` and `Transport.stream`. All are optional."""

    session: str | None
    """The session below which `path` lies. Without one, `path` lies below `/v1`."""
    body: object
    """The JSON body."""
    query: Mapping[str, object] | None
    """Query parameters. Those that are None are left out."""
    secret: str | None
    """The lease's secret."""
    timeout: float
    """The longest time without data, in seconds."""


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    session: str | None = None
    body: object = None
    query: Mapping[str, object] | None = None
    secret: str | None = None
    timeout: float = READ_TIMEOUT


class Transport:
    """Connections to sessiond. Threads may share a transport; `sibling()` has connections of its own."""

    def __init__(self, url: str, key: str | None) -> None:
        if not re.match(r"https?://[^/]", url):
            raise BadName(f"sessiond's URL must begin with http:// or https://, got {url!r}")
        self.url = url.rstrip("/")
        self._key = key
        self._owners: dict[str, str] = {}
        # Keepalive probes detect during a wait of minutes that the server's machine is gone.
        options = [*HTTPConnection.default_socket_options, (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
        for name, seconds in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, name):
                options.append((socket.IPPROTO_TCP, getattr(socket, name), seconds))
        self._pool = urllib3.PoolManager(num_pools=8, maxsize=8, retries=False, socket_options=options)

    def sibling(self) -> "Transport":
        """Return a transport with the same URL and key, for a thread that must not wait for another one."""
        return Transport(self.url, self._key)

    def close(self) -> None:
        self._pool.clear()

    def call(self, method: str, path: str, **options: Unpack[RequestOptions]) -> ApiResponse:
        """Send one request and return the response. The default timeout is READ_TIMEOUT.

        Raises:
            Unavailable: there was no answer, or a 502, 503 or 504; NotOwner after a second 421.
            SessiondError: the exception of the problem that the server answered.
        """
        response = self._send(_Request(method, path, **options), "application/json")
        with connection_errors():
            data = response.read()
        return ApiResponse(response.status, decode(data), response.headers)

    def stream(self, method: str, path: str, **options: Unpack[RequestOptions]) -> Stream:
        """Send one request and return its response as a stream. The default timeout is STREAM_TIMEOUT.

        Raises:
            Unavailable: as from `call`.
            SessiondError: as from `call`.
        """
        options.setdefault("timeout", STREAM_TIMEOUT)
        accept = "text/event-stream, application/json;q=0.5"
        return Stream(self._send(_Request(method, path, **options), accept))

    def _send(self, request: _Request, accept: str) -> urllib3.BaseHTTPResponse:
        target = "/v1" + (f"/sessions/{quote(request.session)}" if request.session else "") + request.path
        query = {name: value for name, value in (request.query or {}).items() if value is not None}
        target += f"?{urlencode(query)}" if query else ""
        headers = {"Accept": accept}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        if request.secret:
            headers["Lease-Secret"] = request.secret
        data = None if request.body is None else orjson.dumps(request.body)
        if data is not None:
            headers["Content-Type"] = "application/json"
        limits = urllib3.Timeout(connect=CONNECT_TIMEOUT, read=request.timeout)

        def send_once(base: str) -> urllib3.BaseHTTPResponse:
            with connection_errors():
                return self._pool.request(
                    request.method,
                    base + target,
                    body=data,
                    headers=headers,
                    timeout=limits,
                    retries=False,
                    redirect=False,
                    preload_content=False,
                )

        return self._follow(request.session or "", send_once)

    def _follow(self, session: str, send_once: Callable[[str], urllib3.BaseHTTPResponse]) -> urllib3.BaseHTTPResponse:
        """Return the response of the session's owner.

        Ask the last known owner first. After a 421, ask the instance that it names, once.
        """
        base = self._owners.get(session, self.url)
        try:
            response = send_once(base)
        except Unavailable:
            # The known owner is gone. The configured instance knows the next owner, or becomes it.
            self._owners.pop(session, None)
            raise
        if response.status == 421:
            failure = failure_of(response)
            owner = getattr(failure, "owner_url", None)
            self._owners.pop(session, None)
            if base != self.url:
                owner = self.url
            if not isinstance(owner, str) or not re.match(r"https?://[^/]", owner):
                raise failure
            response = send_once(owner.rstrip("/"))
            if response.status < 300:
                self._owners[session] = owner.rstrip("/")
        if response.status >= 300:
            raise failure_of(response)
        return response
