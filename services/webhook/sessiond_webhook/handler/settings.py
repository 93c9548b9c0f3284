"""Settings of the handler process. docs: the table in docs/answers.md."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from sessiond.client import DEFAULT_URL
from sessiond_common.env import Env


@dataclass(frozen=True, slots=True)
class HandlerSettings:
    """How one handler runs. Durations in seconds."""

    redis_url: str
    sessiond_url: str
    sessiond_key: str
    lease_ttl: float = 30.0
    runs_per_session: int = 2
    run_ttl: float = 15.0
    turn_timeout: float = 1_200.0
    broken_patience: float = 60.0
    log_format: str = "console"


def from_env(environ: Mapping[str, str] = os.environ) -> HandlerSettings:
    """The settings that the environment asks for. Raises SettingsError."""
    env = Env(environ)
    return HandlerSettings(
        redis_url=env.redis_url(),
        sessiond_url=env.url("SESSIOND_URL", DEFAULT_URL),
        sessiond_key=env.secret("SESSIOND_KEY"),
        lease_ttl=env.seconds("SESSIOND_LEASE_TTL", 30.0),
        runs_per_session=env.count("RUNS_PER_SESSION", 2),
        run_ttl=env.seconds("RUN_TTL", 15.0),
        turn_timeout=env.seconds("ANSWER_TURN_SECONDS", 1_200.0),
        broken_patience=env.seconds("AGENT_BROKEN_PATIENCE", 60.0),
        log_format=env.one_of("HANDLER_LOG_FORMAT", ("console", "json"), "console"),
    )
