"""Settings of sessiond, from the environment. Every one has a default."""

import os
import secrets
import shlex
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sessiond.agent.process.user import User
from sessiond.lock.rules import Times
from sessiond_common.env import DEFAULT_REDIS, Env, SettingsError, load

__all__ = ["Settings", "SettingsError", "from_env", "read"]

TIMES: Final[Mapping[str, str]] = {
    "head_wait": "how long the lock waits for the first in the queue while it is absent",
    "poll_grace": "how long a wait that timed out still counts as present",
    "absence": "how long an absent handler's ticket keeps the worker waiting",
    "ticket_ttl": "how long a ticket lives while its holder is absent",
    "claim_window": "how long a grant lives until its first renewal or turn",
    "lease_ttl": "how long a lease lives after a renewal; clients need the same value",
    "max_hold": "longest life of a handler's lease, however often it is renewed",
    "drain_deadline": "time from a lease's end until the agent is stopped and resumed",
    "start_deadline": "time from a turn's acceptance to its start",
    "not_taken": "time from writing a prompt to the agent's first line about it",
    "idle": "time after which an agent without work is put to sleep",
    "owner_ttl": "how long the record of a session's owner lives",
    "owner_renew": "time between two renewals of the record",
    "owner_doubt": "time after which an owner that cannot renew the record ends its agents",
    "long_wait": "a wait for the lock of this length is logged, with what is ahead of it",
}
"""What the fields of `Times` are. Field `idle` is variable SESSIOND_IDLE, in seconds."""
_AGENT_USER: Final = ("SESSIOND_AGENT_UID", "SESSIOND_AGENT_GID")


@dataclass(frozen=True, slots=True)
class Settings:
    """How one sessiond runs. Durations are in seconds."""

    redis_url: str = DEFAULT_REDIS
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
    """The user that the agent runs as; None for the service's own user."""
    log_format: str = "console"
    times: Times = field(default_factory=Times)


def from_env(environ: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings of this environment. Raises SettingsError."""
    return load(read, environ)


def read(env: Env) -> Settings:
    """Read all variables of sessiond."""
    default = Settings()
    host = env.text("SESSIOND_HOST", default.host, "address on which sessiond listens")
    port = env.port("SESSIOND_PORT", default.port, "port on which sessiond listens")
    state_dir = env.state_dir()
    this_host = socket.gethostname()
    instance = env.text("SESSIOND_INSTANCE", "", "name of this instance; by default host, process id, random letters")
    return Settings(
        redis_url=env.redis_url(),
        state_dir=state_dir,
        host=host,
        port=port,
        url=env.url("SESSIOND_URL", f"http://{host}:{port}", "URL at which other instances and callers reach sessiond"),
        keys_file=env.path("SESSIOND_KEYS_FILE", state_dir / "keys", "file of keys: name, role, SHA-256, sessions"),
        instance=instance or f"{this_host}-{os.getpid()}-{secrets.token_hex(3)}",
        host_name=this_host,
        agent_user=_agent_user(env),
        agent_command=env.read(
            "SESSIOND_AGENT_COMMAND", _command, (), "another agent with Claude Code's protocol and flags"
        ),
        model=env.text("SESSIOND_MODEL", default.model, "default model of sessions"),
        background_tasks=env.flag(
            "SESSIOND_BACKGROUND_TASKS", default.background_tasks, "1 lets the agent run tasks in the background"
        ),
        web_fetch_check=env.flag(
            "SESSIOND_WEB_FETCH_CHECK", default.web_fetch_check, "0 skips the vendor's check of hosts before a WebFetch"
        ),
        checkouts=env.optional_path(
            "SESSIOND_CHECKOUTS", "directory of working directories; by default work in the state directory"
        ),
        max_agents=env.count("SESSIOND_MAX_AGENTS", default.max_agents, "number of agents awake at once"),
        hooks_dir=env.optional_path("SESSIOND_HOOKS_DIR", "for tests: directory of fault points in sessiond"),
        log_format=env.log_format("SESSIOND_LOG_FORMAT"),
        times=Times(
            **{
                name: env.seconds(f"SESSIOND_{name.upper()}", getattr(default.times, name), what)
                for name, what in TIMES.items()
            }
        ),
    )


def _command(text: str) -> tuple[str, ...]:
    return tuple(shlex.split(text))


def _agent_user(env: Env) -> User | None:
    """Both or neither, and never root's."""
    uid, gid = (
        env.text(name, "", f"{what} that the agent runs as; needs a sessiond that may change users")
        for name, what in zip(_AGENT_USER, ("user id", "group id"), strict=True)
    )
    if not uid and not gid:
        return None
    if not all(number.isdecimal() and 0 < int(number) < 2**32 - 1 for number in (uid, gid)):
        env.refuse(_AGENT_USER, "must both be numbers above 0, or both be empty")
        return None
    return User(int(uid), int(gid))
