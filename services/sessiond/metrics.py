"""The service's metrics. One process serves them, so the plain registry is right. Base units."""

from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

REGISTRY = CollectorRegistry()
_WAITS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800)

BUILD = Info("sessiond_build", "What runs here", registry=REGISTRY)
LOCK_WAIT = Histogram(
    "sessiond_lock_wait_seconds", "From a ticket (or the loss of its lease) to its grant", ["kind"], buckets=_WAITS,
    registry=REGISTRY,
)  # fmt: skip
HOLD = Histogram(
    "sessiond_hold_seconds", "From a grant to its lease's end", ["kind"], buckets=_WAITS, registry=REGISTRY
)
HANDOFFS = Counter(
    "sessiond_handoffs_total",
    "Grants by who held before and who holds now",
    ["from_kind", "to_kind"],
    registry=REGISTRY,
)
PREEMPTIONS = Counter("sessiond_preemptions_total", "Worker leases ended by a handler's ticket", registry=REGISTRY)
LEASES_ENDED = Counter("sessiond_leases_ended_total", "Leases that ended", ["reason"], registry=REGISTRY)
TURNS = Counter("sessiond_turns_total", "Turns that closed", ["outcome"], registry=REGISTRY)
RECOVERIES = Counter(
    "sessiond_recoveries_total", "Agents stopped because they did not close", ["reason"], registry=REGISTRY
)
QUEUE = Gauge("sessiond_queue_length", "Tickets in the queue", ["session", "kind"], registry=REGISTRY)
REQUESTS = Counter("sessiond_http_requests_total", "HTTP requests answered", ["route", "status"], registry=REGISTRY)


def build_version() -> str:
    """The version of the agent's binary package, 'unknown' without it."""
    try:
        return version("claude-agent-sdk")
    except PackageNotFoundError:
        return "unknown"


BUILD.info({"agent_package": build_version()})


def exposition() -> bytes:
    """The text that a scrape reads."""
    return generate_latest(REGISTRY)
