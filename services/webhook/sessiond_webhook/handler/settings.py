"""Settings of the handler, from the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from sessiond.client import DEFAULT_URL
from sessiond_common.env import Env, load
from sessiond_common.metrics.settings import OFF, MetricsSettings, read_metrics


@dataclass(frozen=True, slots=True)
class HandlerSettings:
    """How one handler runs. Durations are in seconds."""

    redis_url: str
    sessiond_url: str
    sessiond_key: str
    lease_ttl: float = 30.0
    runs_per_session: int = 2
    run_ttl: float = 15.0
    turn_timeout: float = 1_200.0
    broken_patience: float = 60.0
    log_format: str = "console"
    metrics: MetricsSettings = OFF


def from_env(environ: Mapping[str, str] = os.environ) -> HandlerSettings:
    """Return the settings of this environment. Raises SettingsError."""
    return load(read, environ)


def read(env: Env) -> HandlerSettings:
    """Read all variables of the handler."""
    return HandlerSettings(
        redis_url=env.redis_url(),
        sessiond_url=env.url("SESSIOND_URL", DEFAULT_URL, "URL of sessiond"),
        sessiond_key=env.secret("SESSIOND_KEY", "key with the role handler"),
        lease_ttl=env.seconds("SESSIOND_LEASE_TTL", 30.0, "how long a lease lives; must be sessiond's value"),
        runs_per_session=env.count("RUNS_PER_SESSION", 2, "runs of one session at a time; must be the webhook's value"),
        run_ttl=env.seconds("RUN_TTL", 15.0, "time after which a silent run counts as dead"),
        turn_timeout=env.seconds("ANSWER_TURN_SECONDS", 1_200.0, "longest time of one turn"),
        broken_patience=env.seconds("AGENT_BROKEN_PATIENCE", 60.0, "how long a broken agent is asked again"),
        log_format=env.log_format("HANDLER_LOG_FORMAT"),
        metrics=read_metrics(env),
    )
