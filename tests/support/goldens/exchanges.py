"""Record HTTP exchanges and server-sent events."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import urllib3

from support.goldens.mask import Mask

SERVER_HEADERS = frozenset({"date", "server", "content-length", "connection", "transfer-encoding", "keep-alive"})
"""Headers that the HTTP server adds."""


def headers_of(answer: Any) -> dict[str, str]:
    """Return the headers that the service sets, without those of the HTTP server."""
    return {name: value for name, value in answer.headers.items() if name.lower() not in SERVER_HEADERS}


class Answer:
    """An answer that was read completely. `body` is its parsed JSON."""

    def __init__(self, status: int, headers: Mapping[str, str], data: bytes) -> None:
        self.status, self.headers, self.data = status, headers, data

    @property
    def body(self) -> Any:
        return json.loads(self.data)


class Http:
    """Calls one service. Each recorded call becomes a fact with its answer."""

    def __init__(self, url: str, keys: Mapping[str, str], mask: Mask, root: str = "") -> None:
        """`root` is the session that `~` at the start of a path stands for."""
        self.url, self.keys, self.mask, self.root = url, keys, mask, root
        self.facts: list[Any] = []
        self.pool = urllib3.PoolManager(retries=False, timeout=60, maxsize=32)

    def ask(
        self, method: str, path: str, body: Any = None, *, role: str | None = "admin", secret: str | None = None,
        stream: bool = False, **headers: str,
    ) -> Any:  # fmt: skip
        """Return the answer without recording it."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if role is not None:
            sent["Authorization"] = f"Bearer {self.keys[role]}"
        if secret is not None:
            sent["Lease-Secret"] = secret
        more: dict[str, Any] = {"headers": sent, "preload_content": not stream}
        if isinstance(body, bytes):
            more["body"] = body
        elif body is not None:
            more["json"] = body
        return self.pool.request(method, self.url + self._path(path), **more)

    def _path(self, path: str) -> str:
        return f"/v1/sessions/{self.root}{path[1:]}" if path.startswith("~") else path

    def __call__(self, method: str, path: str, body: Any = None, **more: Any) -> Answer:
        """Record a call and return its answer."""
        answer = self.ask(method, path, body, **more)
        return self.record(method, path, body, answer, **more)

    def record(self, method: str, path: str, body: Any, answer: Any, **more: Any) -> Answer:
        """Record a call whose answer has arrived."""
        data = getattr(answer, "read_data", None) or answer.data
        kind = answer.headers.get("Content-Type", "")
        fact: dict[str, Any] = {
            "call": f"{method} {self.mask.text(path)}",
            "status": answer.status,
            "headers": self.masked_headers(answer),
        }
        if isinstance(body, bytes):
            fact["given"] = f"{len(body)} bytes" if len(body) > 60 else body.decode("latin-1")
        elif body is not None:
            fact["given"] = self.mask.value({k: v for k, v in body.items() if k != "prompt"})
            if "prompt" in body:
                fact["given"]["prompt"] = self.mask.text(body["prompt"])
        if more.get("role", "admin") != "admin":
            fact["role"] = more["role"]
        if more.get("secret"):
            fact["secret"] = self.mask.name("secret", more["secret"])
        if data and kind.startswith("text/event-stream"):
            fact["events"] = masked_events(self.mask, events_of(data))
        elif data and "json" in kind:
            fact["body"] = self.mask.value(json.loads(data))
        elif data:
            fact["body"] = f"<{kind.partition(';')[0]}>"
        self.facts.append(fact)
        return Answer(answer.status, answer.headers, data)

    def masked_headers(self, answer: Any) -> dict[str, Any]:
        return {name: self.mask.value(value, name) for name, value in headers_of(answer).items()}


def without_common(facts: list[Any], common: Mapping[str, str]) -> list[Any]:
    """Return the facts without the common headers. `lacks` names those that an answer does not have."""
    found = []
    for fact in facts:
        headers = fact["headers"]
        left = {name: value for name, value in headers.items() if common.get(name) != value}
        lacks = sorted(common.keys() - headers.keys())
        found.append({**fact, "headers": left, **({"lacks": lacks} if lacks else {})})
    return found


def events_of(data: bytes) -> list[dict[str, Any]]:
    """Parse the events and comments of a stream."""
    found: list[dict[str, Any]] = []
    for block in data.decode().split("\n\n"):
        event: dict[str, Any] = {}
        for line in block.splitlines():
            name, _, text = line.partition(": ")
            event[name or "comment"] = json.loads(text) if name == "data" else text
        if event:
            found.append(event)
    return found


def masked_events(mask: Mask, events: Iterable[dict[str, Any]]) -> list[Any]:
    """Mask the events. Adjacent equal events become one."""
    found: list[Any] = []
    for event in events:
        one = {name: mask.value(value, name) for name, value in event.items()}
        data = one.get("data")
        if isinstance(data, dict) and isinstance(data.get("event"), dict):
            data["event"].pop("n", None)
        if not found or found[-1] != one:
            found.append(one)
    return found


class Reader:
    """Reads a stream in its own thread until `enough` returns true or the stream ends."""

    def __init__(self, answer: Any, enough: Callable[[list[dict[str, Any]]], bool]) -> None:
        self._answer, self._enough, self._data = answer, enough, b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(urllib3.exceptions.HTTPError, OSError):  # a scene may kill the service meanwhile
            for piece in self._answer.stream(65536):
                self._data += piece
                if self._data.endswith(b"\n\n") and self._enough(self.events):
                    break
        self._answer.close()

    @property
    def events(self) -> list[dict[str, Any]]:
        """The complete events received so far."""
        whole, _, _ = self._data.rpartition(b"\n\n")
        return events_of(whole)

    @property
    def data(self) -> bytes:
        """The bytes of the complete events."""
        return self._data.rpartition(b"\n\n")[0]

    def end(self, seconds: float = 40) -> list[dict[str, Any]]:
        """Wait until the thread has enough events, and return them."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), self._data[-2000:]
        return self.events
