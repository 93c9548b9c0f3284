"""Golden files: outward facts of the services, masked, as text that a test compares byte for byte.

A scene records facts under names. Each name becomes one file. `RECORD_GOLDENS=1` writes the files instead of comparing
them. A mask replaces what differs from run to run: ids, times, durations, addresses, and sentences for people. Equal
ids get equal names within one scene, so that relations between facts stay visible.
"""

import contextlib
import difflib
import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis
import urllib3
from prometheus_client.parser import text_string_to_metric_families

RECORD = os.environ.get("RECORD_GOLDENS") == "1"
WIDTH = 160
SENTENCE = "<sentence>"
WORD = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
PROSE = frozenset({"title", "detail", "description", "summary", "reason", "why", "note", "error", "notices", "message"})
"""Keys whose values are sentences unless they are one word."""
HEADED = re.compile(r"([a-z]+(?:-[a-z]+)*): ")
"""A stable word before a sentence."""
NUMBERS = re.compile(
    r"(?:_ms|_seconds|seconds|^ms|^pid|^size|_mb|_bytes|^beat|pid$|start_time|text_chars|_left|^begun|^until|^last_ms)$"
)
"""Keys whose numbers differ from run to run."""
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
HOST = re.escape(socket.gethostname())
PATTERNS: tuple[tuple[str, str], ...] = (
    ("ticket", r"tk-[0-9a-f]{32}"),
    ("turn", r"tu-[0-9a-f]{32}"),
    ("job", r"(?:demands|posts|tasks)-[0-9a-f]{32}"),
    ("uuid", UUID),
    ("time", r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|\+00:00)?"),
    ("entry", r"(?<!\d)\d{13}-\d{1,3}(?!\d)"),
    ("run", rf"(?:{HOST}|run)-\d+-[0-9a-f]{{6,}}"),
    ("past", r"(?<=past:)[0-9a-f]{64}"),
    ("hex", r"(?<![0-9a-f-])[0-9a-f]{32}(?![0-9a-f-])"),
    ("cookie", r"(?<==)\d{10}\.[0-9a-f]{64}"),
    ("date", r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT"),
    ("etag", r'(?<=")[0-9a-f]{16}(?=")'),
    ("url", r"http://127\.0\.0\.1:\d+"),
    ("unix", r"unix://[^\s\"']+"),
)
NUMBERED = frozenset({"ticket", "turn", "uuid", "run"})
_FOUND = re.compile("|".join(f"(?P<{kind}>{pattern})" for kind, pattern in PATTERNS))


class Mask:
    """One scene's names for what differs from run to run."""

    def __init__(self, **literals: str) -> None:
        """`literals`: texts by the name that stands for them."""
        self._literals: dict[str, str] = {text: f"<{name}>" for name, text in literals.items()}
        self._names: dict[tuple[str, str], str] = {}
        self._lock = threading.Lock()

    def literal(self, text: str, name: str) -> str:
        """From now on this text has this name."""
        return self._literals.setdefault(text, f"<{name}>")

    def name(self, kind: str, text: str) -> str:
        """The name of a value: `<kind-N>`, numbered by first appearance."""
        with self._lock:
            count = sum(known == kind for known, _ in self._names) + 1
            return self._names.setdefault((kind, text), f"<{kind}-{count}>")

    def secret(self, text: str) -> str:
        """A lease's secret, and the hash under which its end is remembered."""
        name = self.name("secret", text)
        self.literal(hashlib.sha256(text.encode()).hexdigest(), f"sha256 of {name[1:-1]}")
        return name

    def text(self, text: str) -> str:
        """The text with every known and recognised value replaced."""
        for known in sorted(self._literals, key=len, reverse=True):
            text = text.replace(known, self._literals[known])
        return _FOUND.sub(self._one, text)

    def _one(self, found: re.Match[str]) -> str:
        kind = str(found.lastgroup)
        return self.name(kind, found[0]) if kind in NUMBERED else f"<{kind}>"

    def blank(self, value: Any) -> str:
        """Text by which things are sorted: known ids by name, unknown ones all alike."""

        def one(found: re.Match[str]) -> str:
            return self._names.get((str(found.lastgroup), found[0]), f"<{found.lastgroup}>")

        return _FOUND.sub(one, value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str))

    def value(self, value: Any, key: str = "") -> Any:
        """A JSON value with everything replaced; `key` is the member that it stands under."""
        match value:
            case None | bool():
                return value
            case dict():
                order = sorted(value, key=lambda name: (self.blank(name), self.blank(value[name])))
                return {self.text(name): self.value(value[name], name) for name in order}
            case list() | tuple():
                return [self.value(one, key) for one in value]
            case int() | float():
                return self._number(value, key)
            case str():
                return self._text(value, key)
        raise TypeError(repr(value))

    def _number(self, value: float, key: str) -> Any:
        if key in ("fence", "last_fence", "released"):
            return self.fence(int(value)) if value else 0
        if key == "epoch":
            return self.name("epoch", str(int(value)))
        if key == "version" or NUMBERS.search(key) or (isinstance(value, float) and "usd" not in key):
            return "<number>"
        return value

    def fence(self, fence: int) -> str:
        """The fence as its epoch and its number within it."""
        epoch = self.name("epoch", str(fence >> 20))[1:-1]
        return f"<fence {fence & (2**20 - 1)} of {epoch}>"

    def _text(self, text: str, key: str) -> str:
        if key in ("secret", "Lease-Secret"):
            return self.secret(text)
        if key in ("task_id", "shown"):
            return "<masked>"
        if key == "reason" and (headed := HEADED.match(text)):
            return f"{self.text(headed[1])}: {SENTENCE}"
        if text.startswith("{") and isinstance(inner := decoded(text), dict):
            return json.dumps(self.value(inner), sort_keys=True)
        masked = self.text(text)
        if key in PROSE and not WORD.fullmatch(text) and not masked.startswith("<"):
            return SENTENCE if masked.strip() else masked
        return masked


# ---- text --------------------------------------------------------------------------------------


def render(value: Any, indent: int = 0) -> str:
    """JSON with sorted members; what fits into one line stands in one."""
    flat = json.dumps(value, sort_keys=True, ensure_ascii=False)
    pad = " " * (indent + 1)
    if not isinstance(value, (dict, list)) or not value or len(flat) + indent <= WIDTH:
        return flat
    if isinstance(value, dict):
        parts = [f"{json.dumps(k, ensure_ascii=False)}: {render(value[k], indent + 1)}" for k in sorted(value)]
        return "{\n" + ",\n".join(pad + part for part in parts) + "\n" + " " * indent + "}"
    return "[\n" + ",\n".join(pad + render(one, indent + 1) for one in value) + "\n" + " " * indent + "]"


class Golden:
    """The files of one test, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = {}

    def put(self, name: str, facts: Any) -> None:
        """One file's facts."""
        assert name not in self.facts, name
        self.facts[name] = facts

    def check(self) -> None:
        """Compares all files, or writes them. A file that nothing was recorded for is a difference too."""
        texts = {f"{name}.json": render(facts) + "\n" for name, facts in self.facts.items()}
        stored = {file.name: file.read_text() for file in sorted(self.folder.glob("*.json"))}
        if RECORD:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in stored.keys() - texts.keys():
                (self.folder / name).unlink()
            for name, text in texts.items():
                (self.folder / name).write_text(text)
            return
        diffs = [
            "\n".join(_diff(f"{self.folder.name}/{name}", stored.get(name, ""), texts.get(name, "")))
            for name in sorted(stored.keys() | texts.keys())
            if stored.get(name) != texts.get(name)
        ]
        if diffs:
            said = "\n\n".join(diffs)
            raise AssertionError(f"outward behaviour differs (RECORD_GOLDENS=1 records it anew)\n{said[:20_000]}")


def _diff(name: str, before: str, after: str) -> Iterator[str]:
    return difflib.unified_diff(
        before.splitlines(), after.splitlines(), f"recorded {name}", f"now {name}", "", "", 2, ""
    )


# ---- HTTP --------------------------------------------------------------------------------------

DROPPED = frozenset({"date", "server", "content-length", "connection", "transfer-encoding", "keep-alive"})
"""Headers of the HTTP server itself."""


def headers_of(answer: Any) -> dict[str, str]:
    """The headers that the service gives, those of the HTTP server left out."""
    return {name: value for name, value in answer.headers.items() if name.lower() not in DROPPED}


class Answer:
    """A read answer: `body` is JSON or text, `raw` what is masked of it."""

    def __init__(self, status: int, headers: Mapping[str, str], data: bytes) -> None:
        self.status, self.headers, self.data = status, headers, data

    @property
    def body(self) -> Any:
        return json.loads(self.data)


class Http:
    """Calls on one service. Every recorded call becomes a fact with its answer."""

    def __init__(self, url: str, keys: Mapping[str, str], mask: Mask, root: str = "") -> None:
        """`root` is put before every path that begins with `~`."""
        self.url, self.keys, self.mask, self.root = url, keys, mask, root
        self.facts: list[Any] = []
        self.pool = urllib3.PoolManager(retries=False, timeout=60, maxsize=32)

    def ask(
        self, method: str, path: str, body: Any = None, *, role: str | None = "admin", secret: str | None = None,
        stream: bool = False, **headers: str,
    ) -> Any:  # fmt: skip
        """The answer, not recorded."""
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
        """The answer, recorded."""
        answer = self.ask(method, path, body, **more)
        return self.record(method, path, body, answer, **more)

    def record(self, method: str, path: str, body: Any, answer: Any, **more: Any) -> Answer:
        """Records an exchange whose answer is there."""
        data = getattr(answer, "read_data", None) or answer.data
        kind = answer.headers.get("Content-Type", "")
        fact: dict[str, Any] = {
            "call": f"{method} {self.mask.text(path)}",
            "status": answer.status,
            "headers": self._headers(answer),
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
            fact["events"] = squeezed(self.mask, events_of(data))
        elif data and "json" in kind:
            fact["body"] = self.mask.value(json.loads(data))
        elif data:
            fact["body"] = f"<{kind.partition(';')[0]}>"
        self.facts.append(fact)
        return Answer(answer.status, answer.headers, data)

    def _headers(self, answer: Any) -> dict[str, Any]:
        return {name: self.mask.value(value, name) for name, value in headers_of(answer).items()}


def without_common(facts: list[Any], common: Mapping[str, str]) -> list[Any]:
    """The facts, headers that every answer has left out; an answer that lacks one says so."""
    found = []
    for fact in facts:
        headers = fact["headers"]
        left = {name: value for name, value in headers.items() if common.get(name) != value}
        lacks = sorted(common.keys() - headers.keys())
        found.append({**fact, "headers": left, **({"lacks": lacks} if lacks else {})})
    return found


# ---- server-sent events ------------------------------------------------------------------------


def events_of(data: bytes) -> list[dict[str, Any]]:
    """The events and comments of a stream."""
    found: list[dict[str, Any]] = []
    for block in data.decode().split("\n\n"):
        event: dict[str, Any] = {}
        for line in block.splitlines():
            name, _, text = line.partition(": ")
            event[name or "comment"] = json.loads(text) if name == "data" else text
        if event:
            found.append(event)
    return found


def squeezed(mask: Mask, events: Iterable[dict[str, Any]]) -> list[Any]:
    """The events masked; equal neighbours become one."""
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
    """Reads a stream in a thread of its own until `enough` says so, or the stream ends."""

    def __init__(self, answer: Any, enough: Callable[[list[dict[str, Any]]], bool]) -> None:
        self._answer, self._enough, self._data = answer, enough, b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(urllib3.exceptions.HTTPError, OSError):  # the service may be killed meanwhile
            for piece in self._answer.stream(65536):
                self._data += piece
                if self._data.endswith(b"\n\n") and self._enough(self.events):
                    break
        self._answer.close()

    @property
    def events(self) -> list[dict[str, Any]]:
        """What was read so far."""
        whole, _, _ = self._data.rpartition(b"\n\n")
        return events_of(whole)

    @property
    def data(self) -> bytes:
        """The bytes of whole events."""
        return self._data.rpartition(b"\n\n")[0]

    def end(self, seconds: float = 40) -> list[dict[str, Any]]:
        """All events, once there are enough."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), self._data[-2000:]
        return self.events


# ---- Redis -------------------------------------------------------------------------------------


def decoded(text: str) -> Any:
    """JSON of an object or a list as such, everything else as text."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return found if isinstance(found, (dict, list)) else text


class Records:
    """What is in a Redis: keys, types, whether they expire, values."""

    def __init__(self, url: str) -> None:
        self.redis: Any = redis.Redis.from_url(url, decode_responses=True)

    def dump(self, mask: Mask, *patterns: str) -> dict[str, Any]:
        """Every key that matches, masked; rq's jobs without what names a function."""
        keys = sorted({key for pattern in patterns for key in self.redis.scan_iter(pattern, count=1000)})
        found: dict[str, Any] = {}
        raw = {key: self._read(key) for key in keys}
        for key in sorted((k for k in keys if raw[k] is not None), key=lambda k: (mask.blank(k), mask.blank(raw[k]))):
            kind, expires, value = raw[key]
            plain = name = mask.text(key)
            count = 1
            while name in found:
                count += 1
                name = f"{plain} #{count}"
            found[name] = {"type": kind, "expires": expires, "value": _masked(mask, key, kind, value)}
        return found

    def _read(self, key: str) -> Any:
        kind = self.redis.type(key)
        read: dict[str, Callable[[], Any]] = {
            "string": lambda: decoded(self.redis.get(key)),
            "hash": lambda: {name: decoded(text) for name, text in _hash(self.redis, key).items()},
            "set": lambda: sorted(self.redis.smembers(key)),
            "list": lambda: self.redis.lrange(key, 0, -1),
            "zset": lambda: dict(self.redis.zrange(key, 0, -1, withscores=True)),
            "stream": lambda: sorted({name for _, entry in self.redis.xrange(key) for name in entry}),
        }
        return None if kind == "none" else (kind, self.redis.ttl(key) >= 0, read[kind]())

    def ledger(self, session: str) -> list[dict[str, Any]]:
        """The entries of a session's stream, as they are stored."""
        return [
            {**json.loads(fields["data"]), **{n: v for n, v in fields.items() if n != "data"}}
            for _, fields in self.redis.xrange(f"sessiond:{{{session}}}:ledger")
        ]


def _hash(connection: Any, key: str) -> dict[str, str]:
    """A hash; of an rq job only what is ours."""
    if not key.startswith("rq:job:"):
        return dict(connection.hgetall(key))
    names = [name for name in connection.hkeys(key) if name != "data"]
    return dict(zip(names, connection.hmget(key, names), strict=True)) if names else {}


def _masked(mask: Mask, key: str, kind: str, value: Any) -> Any:
    if key.startswith("rq:job:"):
        kept = ("origin", "description", "timeout", "result_ttl", "failure_ttl", "status")
        job = {name: value[name] for name in kept if name in value}
        job["description"] = "<function> " + mask.text(str(value["description"])).partition(" ")[2]
        return job
    if key.endswith(":meta"):
        numbers = {"epoch": int(value["epoch"]), **{n: int(value[n]) for n in ("fence", "arrivals") if n in value}}
        hidden = dict.fromkeys(("version", "beat", "step", "url", "host", "state_dir", "instance"), "<masked>")
        return mask.value({**value, **{n: v for n, v in hidden.items() if n in value}, **numbers})
    if kind == "zset":
        order = sorted(value, key=lambda name: (mask.blank(name), value[name]))
        return {mask.text(name): _score(value[name]) for name in order}
    return mask.value(value, key.rpartition(":")[2])


def _score(score: float) -> Any:
    """Scores that are moments are masked; places in a queue are not."""
    return "<moment>" if 1e9 < score < 1e11 or not float(score).is_integer() else int(score)


def told(mask: Mask, entries: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Ledger entries, masked; `step` counts the steps that wrote entries."""
    found: list[Any] = []
    steps: list[tuple[str, str]] = []
    for entry in entries:
        at = (str(entry["epoch"]), str(entry["version"]))
        if at not in steps:
            steps.append(at)
        rest = {n: v for n, v in entry.items() if n not in ("version", "epoch", "event", "id", "at")}
        event = {"event": entry["event"], "step": len(steps), "epoch": mask.name("epoch", str(entry["epoch"]))}
        found.append({**mask.value(rest), **event})
    return found


# ---- metrics and logs --------------------------------------------------------------------------


def metrics_of(text: str, counted: Callable[[str, Mapping[str, str]], bool]) -> dict[str, Any]:
    """Families with types, samples with labels; values only where `counted` says that they are the same each time."""
    found: dict[str, Any] = {}
    for family in text_string_to_metric_families(text):
        samples: dict[str, Any] = {}
        for one in family.samples:
            if one.labels.get("route") == "/readyz":
                continue  # asked until it is ready
            labels = {k: ("<masked>" if one.name.endswith("_info") else v) for k, v in one.labels.items()}
            name = one.name + "".join(f" {k}={v}" for k, v in sorted(labels.items()))
            samples[name] = one.value if counted(one.name, labels) else "<number>"
        found[family.name] = {"type": family.type, "samples": samples}
    return found


def log_lines(text: str) -> list[dict[str, Any]]:
    """Every line is a JSON object, but for what is said before logging is set up."""
    found = [decoded(line) for line in text.splitlines() if line.strip()]
    return [line if isinstance(line, dict) else {"event": "a plain line"} for line in found]


def shapes(lines: Iterable[Mapping[str, Any]]) -> list[Any]:
    """The distinct lines by event, level and fields; an event that is a sentence is masked."""
    found = set()
    for line in lines:
        event = str(line.get("event"))
        name = event if WORD.fullmatch(event) else SENTENCE
        found.add((name, str(line.get("level")), " ".join(sorted(line))))
    return [{"event": event, "level": level, "fields": fields} for event, level, fields in sorted(found)]


def path_of(text: str) -> str:
    """A text as part of a path."""
    return quote(text, safe="")
