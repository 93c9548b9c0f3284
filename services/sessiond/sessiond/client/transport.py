"""HTTP to sessiond: one request and its answer, as JSON or as server-sent events.

Nothing here repeats a request, but for one 421 that names the owner. Whoever may safely ask again
does so through `patience.Backoff`, by hand: only the caller of a request knows whether it may run twice.
"""

import re
import socket
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import quote, urlencode

import orjson
import urllib3
from urllib3.connection import HTTPConnection

from sessiond.client.answers import Answer, Stream, decode, failure_of, faults
from sessiond.client.errors import BadName, Unavailable

CONNECT_TIMEOUT: Final = 5.0
READ_TIMEOUT: Final = 15.0
STREAM_TIMEOUT: Final = 35.0
"""Seconds of silence that end a stream: the server writes a comment every 10."""

_NAME: Final = re.compile(r"[a-z0-9._-]{1,100}/[a-z0-9._-]{1,100}")


def session_name(name: str) -> str:
    """`owner/repo`, folded to lower case. Raises BadName for anything else."""
    folded = name.lower()
    if not _NAME.fullmatch(folded) or {".", ".."} & set(folded.split("/")):
        raise BadName(f"a session is named owner/repo, of letters, digits and ._- : {name!r}")
    return folded


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

        Raises Unavailable (no answer, 502-504; NotOwner for a second 421), or the problem's exception.
        """
        response = self._ask(method, path, session, body, query, secret, timeout, "application/json")
        with faults():
            data = response.read()
        return Answer(response.status, decode(data), response.headers)

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
            with faults():
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
            failure = failure_of(response)
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
            raise failure_of(response)
        return response
