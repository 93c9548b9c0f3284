"""Compare Prometheus's numbers with the ledgers, and run the queries of Grafana's panels."""

import json
import math
import urllib.request
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import isolation
from stack import SESSION, Stack, eventually, say

from sessiond.verify import verify
from support.ledger_checks import Counts, Entries, count_events, count_handoffs

GRAFANA = "http://127.0.0.1:13000"
RANGE = "15m"


def query_prometheus(stack: Stack, query: str) -> list[dict[str, Any]]:
    """Return the result of an instant query, sent from within Prometheus's container."""
    url = f"http://127.0.0.1:9090/api/v1/query?{urlencode({'query': query})}"
    answer = json.loads(stack.compose("exec", "-T", "prometheus", "wget", "-qO-", url))
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


def counts(stack: Stack, metric: str, *labels: str) -> Counts | None:
    """Return the metric's sums by these labels, or None if there is no sample yet.

    The sums cover one run of sessiond: call this before its first restart.
    """
    by = f"sum by ({', '.join(labels)})" if labels else "sum"
    found = query_prometheus(stack, f"{by} ({metric})")
    sums = {tuple(one["metric"][label] for label in labels): int(float(one["value"][1])) for one in found}
    return Counter(sums) if found else None


def check_counts(stack: Stack) -> None:
    """Check that each of Prometheus's counts of the lock equals the ledgers', and print them."""
    ledgers = [stack.ledger(session) for session in (SESSION, isolation.SESSION)]
    entries = sum(ledgers, Entries())
    reports = [verify(ledger) for ledger in ledgers]
    wanted = [
        ("sessiond_handoffs_total", ("from_kind", "to_kind"), count_handoffs(ledgers)),
        ("sessiond_lock_wait_seconds_count", ("kind",), count_events(entries, "granted", "kind")),
        ("sessiond_leases_ended_total", ("kind", "reason"), count_events(entries, "ended", "kind", "reason")),
        ("sessiond_turns_total", ("kind", "outcome"), count_events(entries, "turn-closed", "kind", "outcome")),
        ("sessiond_preemptions_total", (), Counter({(): sum(r.preemptions for r in reports)})),
        ("sessiond_inversions_total", (), Counter({(): sum(r.inversions for r in reports)})),
        ("sessiond_misorders_total", (), Counter({(): sum(r.misorders for r in reports)})),
        ("sessiond_violations_total or vector(0)", (), Counter({(): sum(len(r.violations) for r in reports)})),
        ("sessiond_ledger_checked_total", (), Counter({(): len(entries)})),
    ]
    for metric, labels, want in wanted:
        eventually(lambda m=metric, n=labels, w=want: counts(stack, m, *n) == w, 60, f"{metric} is the ledger's {want}")
        text = ", ".join(f"{' > '.join(values) or 'all'}: {number}" for values, number in sorted(want.items()))
        say(f"  Prometheus and the ledgers: {metric.partition(' ')[0]} {text}")


def print_durations(stack: Stack) -> None:
    """Print the waits for the lock and the phases of a preemption, as Prometheus has them."""
    for what, label, metric in (
        ("lock wait", "kind", "sessiond_lock_wait_seconds_bucket"),
        ("from ticket to", "phase", "sessiond_preemption_seconds_bucket"),
    ):
        found: dict[str, list[str]] = {}
        for share in (0.5, 0.95, 0.99):
            for one in query_prometheus(stack, f"histogram_quantile({share}, sum by (le, {label}) ({metric}))"):
                seconds = float(one["value"][1])
                if not math.isnan(seconds):
                    found.setdefault(one["metric"][label], []).append(f"p{share * 100:g} {seconds * 1000:.0f} ms")
        assert found, f"{metric} has no samples"
        for name, texts in sorted(found.items()):
            say(f"  Prometheus: {what}, {name}: {', '.join(texts)}")


def check_panels(stack: Stack) -> None:
    """Check that Grafana has every dashboard, and that each query of each panel returns numbers."""
    uids = {json.loads(path.read_text())["uid"] for path in (stack.place / "grafana" / "dashboards").glob("*.json")}
    assert {one["uid"] for one in query_grafana("/api/search?type=dash-db")} == uids
    empty = lambda: [where for where, query in panel_queries(uids) if not has_numbers(stack, query)]  # noqa: E731
    total = len(list(panel_queries(uids)))
    try:
        eventually(lambda: not empty(), 20, "every panel shows numbers")
    except AssertionError:
        raise AssertionError(f"these panels show no numbers: {empty()}") from None
    say(f"Grafana has {len(uids)} dashboards; {total} queries of their panels return numbers")


def panel_queries(uids: set[str]) -> Iterator[tuple[str, str]]:
    for uid in sorted(uids):
        for panel in query_grafana(f"/api/dashboards/uid/{uid}")["dashboard"]["panels"]:
            for target in panel["targets"]:
                query = target["expr"].replace("$__rate_interval", RANGE).replace("$__range", RANGE)
                yield f"{uid}: {panel['title']}", query.replace("$session", ".*")


def has_numbers(stack: Stack, query: str) -> bool:
    return any(not math.isnan(float(one["value"][1])) for one in query_prometheus(stack, query))


def query_grafana(path: str) -> Any:
    with urllib.request.urlopen(f"{GRAFANA}{path}", timeout=10) as answer:
        return json.load(answer)
