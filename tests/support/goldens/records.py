"""Masked contents of Redis, ledgers, metrics and logs."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import redis
from prometheus_client.parser import text_string_to_metric_families

from support.goldens.mask import SENTENCE, WORD, Mask, decoded


class Records:
    """The contents of a Redis: keys, types, whether they expire, and values."""

    def __init__(self, url: str) -> None:
        self.redis: Any = redis.Redis.from_url(url, decode_responses=True)

    def dump(self, mask: Mask, *patterns: str) -> dict[str, Any]:
        """Return every key that matches, masked. Jobs of rq are without the names of their functions."""
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
            found[name] = {"type": kind, "expires": expires, "value": _masked_value(mask, key, kind, value)}
        return found

    def _read(self, key: str) -> Any:
        kind = self.redis.type(key)
        read: dict[str, Callable[[], Any]] = {
            "string": lambda: decoded(self.redis.get(key)),
            "hash": lambda: {name: decoded(text) for name, text in _read_hash(self.redis, key).items()},
            "set": lambda: sorted(self.redis.smembers(key)),
            "list": lambda: self.redis.lrange(key, 0, -1),
            "zset": lambda: dict(self.redis.zrange(key, 0, -1, withscores=True)),
            "stream": lambda: sorted({name for _, entry in self.redis.xrange(key) for name in entry}),
        }
        return None if kind == "none" else (kind, self.redis.ttl(key) >= 0, read[kind]())

    def ledger(self, session: str) -> list[dict[str, Any]]:
        """Return a session's ledger entries as they are stored."""
        return [
            {**json.loads(fields["data"]), **{n: v for n, v in fields.items() if n != "data"}}
            for _, fields in self.redis.xrange(f"sessiond:{{{session}}}:ledger")
        ]


def _read_hash(connection: Any, key: str) -> dict[str, str]:
    """Read a hash. Of an rq job, leave out the pickled call."""
    if not key.startswith("rq:job:"):
        return dict(connection.hgetall(key))
    names = [name for name in connection.hkeys(key) if name != "data"]
    return dict(zip(names, connection.hmget(key, names), strict=True)) if names else {}


def _masked_value(mask: Mask, key: str, kind: str, value: Any) -> Any:
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
        return {mask.text(name): _masked_score(value[name]) for name in order}
    return mask.value(value, key.rpartition(":")[2])


def _masked_score(score: float) -> Any:
    """Mask a score that is a time. A position in a queue stays."""
    return "<moment>" if 1e9 < score < 1e11 or not float(score).is_integer() else int(score)


def masked_ledger(mask: Mask, entries: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Mask ledger entries. `step` numbers the steps that wrote entries."""
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


def metrics_of(text: str, is_stable: Callable[[str, Mapping[str, str]], bool]) -> dict[str, Any]:
    """Return the metric families with types, samples and labels.

    A sample keeps its value only if `is_stable(name, labels)` is true; other values are masked.
    """
    found: dict[str, Any] = {}
    for family in text_string_to_metric_families(text):
        samples: dict[str, Any] = {}
        for one in family.samples:
            if one.labels.get("route") == "/readyz":
                continue  # the number of requests until it is ready differs
            labels = {k: ("<masked>" if one.name.endswith("_info") else v) for k, v in one.labels.items()}
            name = one.name + "".join(f" {k}={v}" for k, v in sorted(labels.items()))
            samples[name] = one.value if is_stable(one.name, labels) else "<number>"
        found[family.name] = {"type": family.type, "samples": samples}
    return found


def log_lines(text: str) -> list[dict[str, Any]]:
    """Parse log lines. Lines from before the logging setup are not JSON and become 'a plain line'."""
    found = [decoded(line) for line in text.splitlines() if line.strip()]
    return [line if isinstance(line, dict) else {"event": "a plain line"} for line in found]


def log_shapes(lines: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Return the distinct combinations of event, level and fields. An event that is a sentence is masked."""
    found = set()
    for line in lines:
        event = str(line.get("event"))
        name = event if WORD.fullmatch(event) else SENTENCE
        found.add((name, str(line.get("level")), " ".join(sorted(line))))
    return [{"event": event, "level": level, "fields": fields} for event, level, fields in sorted(found)]
