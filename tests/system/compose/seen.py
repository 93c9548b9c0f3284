"""Prometheus's own numbers, beside what the ledgers say; and what Grafana would ask for."""

import json
import math
import urllib.request
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from urllib.parse import urlencode

import walls
from stack import SESSION, Entries, Stack, eventually, say

from sessiond.verify import verify

GRAFANA = "http://127.0.0.1:13000"
RANGE = "15m"
Counts = Counter[tuple[str, ...]]


def asked(stack: Stack, query: str) -> list[dict[str, Any]]:
    """The result of an instant query, from within Prometheus's container."""
    url = f"http://127.0.0.1:9090/api/v1/query?{urlencode({'query': query})}"
    answer = json.loads(stack.compose("exec", "-T", "prometheus", "wget", "-qO-", url))
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


def counts(stack: Stack, metric: str, *labels: str) -> Counts | None:
    """What is counted, by these labels; of a sessiond that was not started again since. None: nothing yet."""
    by = f"sum by ({', '.join(labels)})" if labels else "sum"
    found = asked(stack, f"{by} ({metric})")
    told = {tuple(one["metric"][label] for label in labels): int(float(one["value"][1])) for one in found}
    return Counter(told) if found else None


def by(entries: Entries, event: str, *names: str) -> Counts:
    return Counter(tuple(str(entry[name]) for name in names) for entry in entries if entry["event"] == event)


def agree(stack: Stack) -> None:
    """Every count of the lock that Prometheus has is the ledgers', to the last one; then it is printed."""
    ledgers = [stack.ledger(session) for session in (SESSION, walls.SESSION)]
    entries = sum(ledgers, Entries())
    handoffs: Counts = Counter()
    for ledger in ledgers:
        handoffs += Counter(pairwise(["nobody", *(e["kind"] for e in ledger if e["event"] == "granted")]))
    reports = [verify(ledger) for ledger in ledgers]
    wanted = [
        ("sessiond_handoffs_total", ("from_kind", "to_kind"), handoffs),
        ("sessiond_lock_wait_seconds_count", ("kind",), by(entries, "granted", "kind")),
        ("sessiond_leases_ended_total", ("kind", "reason"), by(entries, "ended", "kind", "reason")),
        ("sessiond_turns_total", ("kind", "outcome"), by(entries, "turn-closed", "kind", "outcome")),
        ("sessiond_preemptions_total", (), Counter({(): sum(r.preemptions for r in reports)})),
        ("sessiond_inversions_total", (), Counter({(): sum(r.inversions for r in reports)})),
        ("sessiond_misorders_total", (), Counter({(): sum(r.misorders for r in reports)})),
        ("sessiond_violations_total or vector(0)", (), Counter({(): sum(len(r.violations) for r in reports)})),
        ("sessiond_ledger_checked_total", (), Counter({(): len(entries)})),
    ]
    for metric, labels, want in wanted:
        eventually(lambda m=metric, n=labels, w=want: counts(stack, m, *n) == w, 60, f"{metric} is the ledger's {want}")
        plain = ", ".join(f"{' > '.join(values) or 'all'}: {number}" for values, number in sorted(want.items()))
        say(f"  Prometheus and the ledgers: {metric.partition(' ')[0]} {plain}")


def times(stack: Stack) -> None:
    """How long who waited for the lock, and what a preemption took, as Prometheus has it."""
    for what, label, metric in (
        ("lock wait", "kind", "sessiond_lock_wait_seconds_bucket"),
        ("from ticket to", "phase", "sessiond_preemption_seconds_bucket"),
    ):
        found: dict[str, list[str]] = {}
        for share in (0.5, 0.95, 0.99):
            for one in asked(stack, f"histogram_quantile({share}, sum by (le, {label}) ({metric}))"):
                seconds = float(one["value"][1])
                if not math.isnan(seconds):
                    found.setdefault(one["metric"][label], []).append(f"p{share * 100:g} {seconds * 1000:.0f} ms")
        assert found, f"{metric} has nothing"
        for name, texts in sorted(found.items()):
            say(f"  Prometheus: {what}, {name}: {', '.join(texts)}")


def panels(stack: Stack) -> None:
    """Grafana has every dashboard; each query of each panel shows numbers of this stack."""
    files = {json.loads(path.read_text())["uid"] for path in (stack.place / "grafana" / "dashboards").glob("*.json")}
    assert {one["uid"] for one in of_grafana("/api/search?type=dash-db")} == files
    empty = lambda: [where for where, query in queries(files) if not shows(stack, query)]  # noqa: E731
    asked_for = len(list(queries(files)))
    try:
        eventually(lambda: not empty(), 20, "every panel shows something")
    except AssertionError:
        raise AssertionError(f"these show nothing: {empty()}") from None
    say(f"Grafana has {len(files)} dashboards; {asked_for} queries of their panels show numbers")


def queries(uids: set[str]) -> Iterator[tuple[str, str]]:
    for uid in sorted(uids):
        for panel in of_grafana(f"/api/dashboards/uid/{uid}")["dashboard"]["panels"]:
            for target in panel["targets"]:
                query = target["expr"].replace("$__rate_interval", RANGE).replace("$__range", RANGE)
                yield f"{uid}: {panel['title']}", query.replace("$session", ".*")


def shows(stack: Stack, query: str) -> bool:
    return any(not math.isnan(float(one["value"][1])) for one in asked(stack, query))


def of_grafana(path: str) -> Any:
    with urllib.request.urlopen(f"{GRAFANA}{path}", timeout=10) as answer:
        return json.load(answer)
