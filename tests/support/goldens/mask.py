"""Mask what differs from run to run: ids, times, durations, addresses, and sentences for people.

Equal ids get equal names within one scene, so that relations between facts stay visible.
"""

import hashlib
import json
import re
import socket
import threading
from typing import Any

SENTENCE = "<sentence>"


WORD = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


SENTENCE_KEYS = frozenset(
    {"title", "detail", "description", "summary", "reason", "why", "note", "error", "notices", "message"}
)
"""Keys whose values are sentences unless they are one word."""

CODE_BEFORE_SENTENCE = re.compile(r"([a-z]+(?:-[a-z]+)*): ")
"""A stable code before a sentence."""

CHANGING_NUMBERS = re.compile(
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


NUMBERED_KINDS = frozenset({"ticket", "turn", "uuid", "run"})


_PATTERN = re.compile("|".join(f"(?P<{kind}>{pattern})" for kind, pattern in PATTERNS))


class Mask:
    """The names that one scene gives to changing values."""

    def __init__(self, **literals: str) -> None:
        """`literals` maps a name to the text that it replaces."""
        self._literals: dict[str, str] = {text: f"<{name}>" for name, text in literals.items()}
        self._names: dict[tuple[str, str], str] = {}
        self._lock = threading.Lock()

    def literal(self, text: str, name: str) -> str:
        """Replace this text with this name from now on."""
        return self._literals.setdefault(text, f"<{name}>")

    def name(self, kind: str, text: str) -> str:
        """Return the name of a value: `<kind-N>`, numbered in order of first appearance."""
        with self._lock:
            count = sum(known == kind for known, _ in self._names) + 1
            return self._names.setdefault((kind, text), f"<{kind}-{count}>")

    def secret(self, text: str) -> str:
        """Mask a lease secret, and its hash, under which sessiond stores the end of the lease."""
        name = self.name("secret", text)
        self.literal(hashlib.sha256(text.encode()).hexdigest(), f"sha256 of {name[1:-1]}")
        return name

    def text(self, text: str) -> str:
        """Return the text with every known literal and every recognised pattern replaced."""
        for known in sorted(self._literals, key=len, reverse=True):
            text = text.replace(known, self._literals[known])
        return _PATTERN.sub(self._one, text)

    def _one(self, found: re.Match[str]) -> str:
        kind = str(found.lastgroup)
        return self.name(kind, found[0]) if kind in NUMBERED_KINDS else f"<{kind}>"

    def blank(self, value: Any) -> str:
        """Return a sort key: known ids become their names, and all unknown ids of a kind become equal."""

        def one(found: re.Match[str]) -> str:
            return self._names.get((str(found.lastgroup), found[0]), f"<{found.lastgroup}>")

        return _PATTERN.sub(one, value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str))

    def value(self, value: Any, key: str = "") -> Any:
        """Mask a JSON value. `key` is the name of the member that contains it."""
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
        if key == "version" or CHANGING_NUMBERS.search(key) or (isinstance(value, float) and "usd" not in key):
            return "<number>"
        return value

    def fence(self, fence: int) -> str:
        """Mask a fence as its epoch and its number within that epoch."""
        epoch = self.name("epoch", str(fence >> 20))[1:-1]
        return f"<fence {fence & (2**20 - 1)} of {epoch}>"

    def _text(self, text: str, key: str) -> str:
        if key in ("secret", "Lease-Secret"):
            return self.secret(text)
        if key in ("task_id", "shown"):
            return "<masked>"
        if key == "reason" and (headed := CODE_BEFORE_SENTENCE.match(text)):
            return f"{self.text(headed[1])}: {SENTENCE}"
        if text.startswith("{") and isinstance(inner := decoded(text), dict):
            return json.dumps(self.value(inner), sort_keys=True)
        masked = self.text(text)
        if key in SENTENCE_KEYS and not WORD.fullmatch(text) and not masked.startswith("<"):
            return SENTENCE if masked.strip() else masked
        return masked


def decoded(text: str) -> Any:
    """Parse the text if it is a JSON object or list. Otherwise return the text."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return found if isinstance(found, (dict, list)) else text
