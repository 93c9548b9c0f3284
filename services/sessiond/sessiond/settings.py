"""Settings from the environment; every one has a default. docs: the table in README.md."""

import os
import secrets
import shlex
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from sessiond.agent.process.user import User
from sessiond.lock.rules import Times
from sessiond_common.env import Env, SettingsError

__all__ = ["Settings", "SettingsError", "from_env"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How one sessiond runs. Durations in seconds."""

    redis_url: str = "redis://127.0.0.1:6379/0"
    state_dir: Path = Path(".state")
    host: str = "127.0.0.1"
    port: int = 8420
    url: str = "http://127.0.0.1:8420"
    keys_file: Path = Path(".state/keys")
    instance: str = ""
    host_name: str = ""
    agent_command: tuple[str, ...] = ()
    model: str = "claude-sonnet-4-5"
    background_tasks: bool = False
    web_fetch_check: bool = True
    checkouts: Path | None = None
    max_agents: int = 8
    hooks_dir: Path | None = None
    agent_user: User | None = None
    """Whom the agent runs as; None for the service's own user."""
    log_format: str = "console"
    times: Times = field(default_factory=Times)


def from_env(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings that the environment asks for. Raises SettingsError."""
    env, default = Env(environ), Settings()
    host = env.text("SESSIOND_HOST", default.host)
    port = env.port("SESSIOND_PORT", default.port)
    state_dir = env.path("SESSIOND_STATE_DIR", default.state_dir)
    this_host = socket.gethostname()
    return Settings(
        redis_url=env.redis_url(),
        state_dir=state_dir,
        host=host,
        port=port,
        url=env.url("SESSIOND_URL", f"http://{host}:{port}"),
        keys_file=env.path("SESSIOND_KEYS_FILE", state_dir / "keys"),
        instance=env.text("SESSIOND_INSTANCE", f"{this_host}-{os.getpid()}-{secrets.token_hex(3)}"),
        host_name=this_host,
        agent_user=_agent_user(env.text("SESSIOND_AGENT_UID"), env.text("SESSIOND_AGENT_GID")),
        agent_command=env.read("SESSIOND_AGENT_COMMAND", lambda text: tuple(shlex.split(text)), ()),
        model=env.text("SESSIOND_MODEL", default.model),
        background_tasks=env.flag("SESSIOND_BACKGROUND_TASKS", default.background_tasks),
        web_fetch_check=env.flag("SESSIOND_WEB_FETCH_CHECK", default.web_fetch_check),
        checkouts=env.read("SESSIOND_CHECKOUTS", Path, None),
        max_agents=env.count("SESSIOND_MAX_AGENTS", default.max_agents),
        hooks_dir=env.read("SESSIOND_HOOKS_DIR", Path, None),
        log_format=env.one_of("SESSIOND_LOG_FORMAT", ("console", "json"), default.log_format),
        times=Times(
            **{f.name: env.seconds(f"SESSIOND_{f.name.upper()}", getattr(default.times, f.name)) for f in fields(Times)}
        ),
    )


def _agent_user(uid: str, gid: str) -> User | None:
    """Both or neither; never root's."""
    if not uid and not gid:
        return None
    if not (uid.isdecimal() and gid.isdecimal() and 0 < int(uid) < 2**32 - 1 and 0 < int(gid) < 2**32 - 1):
        raise SettingsError("SESSIOND_AGENT_UID, SESSIOND_AGENT_GID: must both be numbers above 0, or both be empty")
    return User(int(uid), int(gid))
