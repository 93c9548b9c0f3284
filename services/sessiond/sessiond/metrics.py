"""The service's metrics. One process serves them, so the plain registry is right. Base units.

Every label has a bounded set of values. What must be seen as 0 before it first happens is there from the start: a rate
is blind to a series' first value. Gauges are made at each scrape, see gauges.py.
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
"""Of a preemption, each counted from the moment the handler's ticket came in."""
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

BUILD = Info("sessiond_build", "What runs here", registry=REGISTRY)


def _counter(name: str, text: str, **labels: tuple[str, ...]) -> Counter:
    made = Counter(name, text, list(labels), registry=REGISTRY)
    _begin(made, labels)
    return made


def _histogram(name: str, text: str, buckets: tuple[float, ...], **labels: tuple[str, ...]) -> Histogram:
    made = Histogram(name, text, list(labels), buckets=buckets, registry=REGISTRY)
    _begin(made, labels)
    return made


def _begin(made: Any, labels: Mapping[str, tuple[str, ...]]) -> None:
    """Every known combination is there with 0; a label without known values begins with none."""
    for values in product(*labels.values()) if labels else ():
        made.labels(*values)


LOCK_WAIT = _histogram(
    "sessiond_lock_wait_seconds", "From a ticket (or the loss of its lease) to its grant", _WAITS, kind=_KINDS
)
HOLD = _histogram("sessiond_hold_seconds", "From a grant to its lease's end", _WAITS, kind=_KINDS)
HANDOFFS = _counter(
    "sessiond_handoffs_total", "Grants by who held before and who holds now",
    from_kind=(NOBODY, *_KINDS), to_kind=_KINDS,
)  # fmt: skip
PREEMPTIONS = _counter("sessiond_preemptions_total", "Worker leases ended by a handler's ticket")
PREEMPTION = _histogram(
    "sessiond_preemption_seconds", "From a handler's ticket to each phase of its preemption", _PHASES, phase=PHASES
)
LEASES_ENDED = _counter(
    "sessiond_leases_ended_total", "Leases that ended; every reason but released and withdrawn is a loss",
    kind=_KINDS, reason=tuple(reason.value for reason in LeaseEnd),
)  # fmt: skip
PASSED_OVER = _counter("sessiond_passed_over_total", "Absent tickets that the lock no longer waited for", kind=_KINDS)
LAPSED = _counter("sessiond_lapsed_total", "Handlers' tickets that no longer bar the worker")
DRAINS = _counter("sessiond_drains_total", "Drains that ended", outcome=("closed", "reaped"))
TURNS = _counter(
    "sessiond_turns_total", "Turns that closed", kind=_KINDS, outcome=tuple(outcome.value for outcome in TurnOutcome)
)
TOKENS_USED = _counter("sessiond_tokens_total", "Tokens of turns, as the agent tells them", type=tuple(TOKENS.values()))
COST = _counter("sessiond_cost_usd_total", "US dollars of turns, as the agent tells them")
RECOVERIES = _counter(
    "sessiond_recoveries_total", "Agents stopped because they did not close",
    reason=tuple(sorted(termination.RECOVERIES)),
)  # fmt: skip
STEP = _histogram("sessiond_redis_step_seconds", "One step's commit: the script's call and its answer", _STEPS)
REQUESTS = _counter("sessiond_http_requests_total", "HTTP requests answered", route=(), status=())

INVERSIONS = _counter(
    "sessiond_inversions_total", "Grants to the worker while a handler's ticket was queued, as the ledger tells; 0"
)
MISORDERS = _counter("sessiond_misorders_total", "Grants over a lower score, as the ledger tells; 0")
VIOLATIONS = _counter("sessiond_violations_total", "Whatever else the ledger tells against the rules; 0", invariant=())
CHECKED = _counter("sessiond_ledger_checked_total", "Ledger entries that were read for the three above")


def build_version() -> str:
    """The version of the agent's binary package, 'unknown' without it."""
    try:
        return version("claude-agent-sdk")
    except PackageNotFoundError:
        return "unknown"


BUILD.info({"version": VERSION, "python": platform.python_version(), "agent_package": build_version()})


def exposition() -> bytes:
    """The text that a scrape reads."""
    return generate_latest(REGISTRY)
