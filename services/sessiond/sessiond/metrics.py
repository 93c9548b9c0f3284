"""The metrics of sessiond, in base units. One process serves them, from a plain registry.

Every label has a bounded set of values. Counters whose label values are known start at 0, because `rate` ignores the
first value of a series. `service/gauges.py` computes the gauges at each scrape.
"""

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, generate_latest

from sessiond.agent import termination
from sessiond.agent.state import TurnOutcome
from sessiond.lock.rules import Kind, LeaseEnd
from sessiond_common import VERSION

REGISTRY = CollectorRegistry()
NOBODY: Final = "nobody"
PHASES: Final = ("interrupt", "ack", "closed", "grant")
"""Phases of a preemption. Each is measured from the arrival of the handler's ticket."""
TOKENS: Final[Mapping[str, str]] = {
    "input_tokens": "input",
    "output_tokens": "output",
    "cache_creation_input_tokens": "cache_write",
    "cache_read_input_tokens": "cache_read",
}
_KINDS: Final = tuple(kind.value for kind in Kind)
_WAITS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800)
_STEPS: Final = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3)
_PHASES: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)

BUILD = Info("sessiond_build", "Versions of this service", registry=REGISTRY)


def _counter(name: str, text: str, **labels: tuple[str, ...]) -> Counter:
    found = Counter(name, text, list(labels), registry=REGISTRY)
    _start_at_zero(found, labels)
    return found


def _histogram(name: str, text: str, buckets: tuple[float, ...], **labels: tuple[str, ...]) -> Histogram:
    found = Histogram(name, text, list(labels), buckets=buckets, registry=REGISTRY)
    _start_at_zero(found, labels)
    return found


def _start_at_zero(metric: Any, labels: Mapping[str, tuple[str, ...]]) -> None:
    """Create every known combination of label values. A label without known values starts with none."""
    for values in product(*labels.values()) if labels else ():
        metric.labels(*values)


LOCK_WAIT = _histogram(
    "sessiond_lock_wait_seconds", "Time from a ticket, or from the loss of its lease, to its grant", _WAITS, kind=_KINDS
)
HOLD = _histogram("sessiond_hold_seconds", "Time from a grant to the end of its lease", _WAITS, kind=_KINDS)
HANDOFFS = _counter(
    "sessiond_handoffs_total", "Grants, by the kind of the previous holder and of the new one",
    from_kind=(NOBODY, *_KINDS), to_kind=_KINDS,
)  # fmt: skip
PREEMPTIONS = _counter("sessiond_preemptions_total", "Worker leases ended by a handler's ticket")
PREEMPTION = _histogram(
    "sessiond_preemption_seconds", "Time from a handler's ticket to each phase of its preemption", _PHASES, phase=PHASES
)
LEASES_ENDED = _counter(
    "sessiond_leases_ended_total", "Leases that ended. Every reason but released and withdrawn is a loss",
    kind=_KINDS, reason=tuple(reason.value for reason in LeaseEnd),
)  # fmt: skip
PASSED_OVER = _counter(
    "sessiond_passed_over_total", "Tickets that were passed over because their holder was absent", kind=_KINDS
)
LAPSED = _counter("sessiond_lapsed_total", "Handlers' tickets that lapsed and no longer block the worker")
DRAINS = _counter(
    "sessiond_drains_total", "Drains that ended: closed, or reaped with the agent", outcome=("closed", "reaped")
)
TURNS = _counter(
    "sessiond_turns_total", "Turns that closed", kind=_KINDS, outcome=tuple(outcome.value for outcome in TurnOutcome)
)
TOKENS_USED = _counter(
    "sessiond_tokens_total", "Tokens used by turns, as reported by the agent", type=tuple(TOKENS.values())
)
COST = _counter("sessiond_cost_usd_total", "Cost of turns in US dollars, as reported by the agent")
RECOVERIES = _counter(
    "sessiond_recoveries_total", "Agents that were stopped because they did not close their turn or broke the protocol",
    reason=tuple(sorted(termination.RECOVERIES)),
)  # fmt: skip
STEP = _histogram("sessiond_redis_step_seconds", "Time to commit one step to Redis", _STEPS)
REQUESTS = _counter("sessiond_http_requests_total", "Answered HTTP requests", route=(), status=())

INVERSIONS = _counter(
    "sessiond_inversions_total",
    "Grants to the worker while a handler's ticket was queued, found in the ledger. Expected: 0",
)
MISORDERS = _counter(
    "sessiond_misorders_total", "Grants over a ticket with a lower score, found in the ledger. Expected: 0"
)
VIOLATIONS = _counter(
    "sessiond_violations_total", "Violations of any invariant, found in the ledger. Expected: 0", invariant=()
)
CHECKED = _counter("sessiond_ledger_checked_total", "Ledger entries checked for inversions, misorders and violations")


def build_version() -> str:
    """Return the version of the package with the agent's binary, or `unknown`."""
    try:
        return version("claude-agent-sdk")
    except PackageNotFoundError:
        return "unknown"


BUILD.info({"version": VERSION, "python": platform.python_version(), "agent_package": build_version()})


def exposition() -> bytes:
    """Return all metrics in Prometheus' text format."""
    return generate_latest(REGISTRY)
