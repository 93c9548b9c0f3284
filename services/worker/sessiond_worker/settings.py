"""The worker's settings, all from the environment. docs: the table in docs/worker.md."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sessiond_common.env import Env, SettingsError
from sessiond_worker.tasks.model import TaskBudget


@dataclass(frozen=True, slots=True)
class Settings:
    """How a worker runs. Durations in seconds."""

    sessiond_url: str
    sessiond_key: str
    redis_url: str
    budget: TaskBudget
    sweep_seconds: float
    claim_ttl: float
    lease_ttl: float
    retry_seconds: float
    failures_allowed: int
    broken_patience: float
    hooks_dir: Path | None
    log_format: str


def budget_from(env: Env) -> TaskBudget:
    """TASK_TURNS, TASK_MINUTES, TASK_USD. Raises SettingsError."""
    return TaskBudget(env.count("TASK_TURNS", 20), env.seconds("TASK_MINUTES", 120.0), env.money("TASK_USD", None))


def from_env(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings that the environment asks for. Raises SettingsError."""
    env = Env(environ)
    hooks = env.text("WORKER_HOOKS_DIR")
    key = env.secret("SESSIOND_KEY")
    if not key:
        raise SettingsError("SESSIOND_KEY: a key with the role worker is needed (or SESSIOND_KEY_FILE)")
    return Settings(
        sessiond_url=env.url("SESSIOND_URL", "http://127.0.0.1:8420"),
        sessiond_key=key,
        redis_url=env.redis_url(),
        budget=budget_from(env),
        sweep_seconds=env.seconds("WORKER_SWEEP_SECONDS", 30.0),
        claim_ttl=env.seconds("WORKER_CLAIM_SECONDS", 15.0),
        lease_ttl=env.seconds("SESSIOND_LEASE_TTL", 30.0),
        retry_seconds=env.seconds("WORKER_RETRY_SECONDS", 5.0),
        failures_allowed=env.count("WORKER_FAILURES", 3),
        broken_patience=env.seconds("WORKER_BROKEN_SECONDS", 60.0),
        hooks_dir=Path(hooks) if hooks else None,
        log_format=env.one_of("WORKER_LOG_FORMAT", ("console", "json"), "console"),
    )
