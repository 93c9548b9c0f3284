"""Settings of the worker, from the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sessiond_common.env import Env, load
from sessiond_common.metrics.settings import MetricsSettings, read_metrics
from sessiond_worker.tasks.model import TaskBudget


@dataclass(frozen=True, slots=True)
class Settings:
    """How a worker runs. Durations are in seconds."""

    sessiond_url: str
    sessiond_key: str
    redis_url: str
    budget: TaskBudget
    sweep_seconds: float
    run_lease_ttl: float
    lease_ttl: float
    retry_seconds: float
    failures_allowed: int
    broken_patience: float
    hooks_dir: Path | None
    log_format: str
    metrics: MetricsSettings


def from_env(environ: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings of this environment. Raises SettingsError."""
    return load(read, environ)


def read(env: Env) -> Settings:
    """Read all variables of the worker."""
    hooks = env.text("WORKER_HOOKS_DIR", "", "for tests: directory of fault points in a run")
    key = env.secret("SESSIOND_KEY", "key with the role worker; required")
    if not key:
        env.refuse(("SESSIOND_KEY",), "must be set to a key with the role worker (or SESSIOND_KEY_FILE)")
    return Settings(
        sessiond_url=env.url("SESSIOND_URL", "http://127.0.0.1:8420", "URL of sessiond"),
        sessiond_key=key,
        redis_url=env.redis_url(),
        budget=_budget(env),
        sweep_seconds=env.seconds("WORKER_SWEEP_SECONDS", 30.0, "time between two sweeps for tasks without a run"),
        run_lease_ttl=env.seconds("WORKER_CLAIM_SECONDS", 15.0, "how long a run keeps its task without a renewal"),
        lease_ttl=env.seconds("SESSIOND_LEASE_TTL", 30.0, "how long a lease lives; must be sessiond's value"),
        retry_seconds=env.seconds(
            "WORKER_RETRY_SECONDS", 5.0, "pause after a failed turn; doubles with each further one"
        ),
        failures_allowed=env.count("WORKER_FAILURES", 3, "failed turns in a row after which a task is stuck"),
        broken_patience=env.seconds("WORKER_BROKEN_SECONDS", 60.0, "how long a run waits for an agent that cannot run"),
        hooks_dir=Path(hooks) if hooks else None,
        log_format=env.log_format("WORKER_LOG_FORMAT"),
        metrics=read_metrics(env),
    )


def _budget(env: Env) -> TaskBudget:
    return TaskBudget(
        turns=env.count("TASK_TURNS", 20, "turns of a task that brings no budget of its own"),
        minutes=env.seconds("TASK_MINUTES", 120.0, "minutes of turns of such a task"),
        usd=env.money("TASK_USD", None, "US dollars of such a task; no limit by default"),
    )
