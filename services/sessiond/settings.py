"""Settings from the environment; every one has a default. docs: the table in README.md."""

import os
import secrets
import shlex
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from base.env import Env
from base.env import SettingsError as BaseError
from sessiond.agent.user import User
from sessiond.lock.rules import Times


class SettingsError(ValueError):
    """A setting is not valid; the text is one line that names it."""


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
    checkouts: Path | None = None
    max_agents: int = 8
    hooks_dir: Path | None = None
    agent_user: User | None = None
    """Whom the agent runs as; None for the service's own user."""
    log_format: str = "console"
    times: Times = field(default_factory=Times)


PREFIX: Final = "SESSIOND_"


def _flag(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("", "0", "false", "no", "off"):
        return False
    raise ValueError("must be 1 or 0")


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e9:
        raise ValueError("must be seconds above 0")
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError("must be 1 or more")
    return number


def _port(text: str) -> int:
    number = int(text)
    if not 0 < number < 65536:
        raise ValueError("must be a port, 1 to 65535")
    return number


def _format(text: str) -> str:
    if text not in ("console", "json"):
        raise ValueError("must be console or json")
    return text


_READERS: Final[Mapping[str, Callable[[str], Any]]] = {
    "state_dir": Path,
    "host": str,
    "port": _port,
    "url": lambda text: text.rstrip("/"),
    "keys_file": Path,
    "instance": str,
    "agent_command": lambda text: tuple(shlex.split(text)),
    "model": str,
    "background_tasks": _flag,
    "checkouts": Path,
    "max_agents": _count,
    "hooks_dir": Path,
    "log_format": _format,
}


def from_env(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings that the environment asks for. Raises SettingsError."""
    found: dict[str, Any] = {}
    for name, read in _READERS.items():
        text = environ.get(PREFIX + name.upper())
        if text:
            found[name] = _read(PREFIX + name.upper(), read, text)
    times = {
        f.name: _read(PREFIX + f.name.upper(), _positive, environ[PREFIX + f.name.upper()])
        for f in fields(Times)
        if environ.get(PREFIX + f.name.upper())
    }
    host = socket.gethostname()
    found.setdefault("instance", f"{host}-{os.getpid()}-{secrets.token_hex(3)}")
    state_dir = found.get("state_dir", Path(".state"))
    found.setdefault("keys_file", state_dir / "keys")
    found.setdefault("url", f"http://{found.get('host', '127.0.0.1')}:{found.get('port', 8420)}")
    try:
        redis_url = Env(environ).redis_url()
    except BaseError as error:
        raise SettingsError(str(error)) from error
    user = _agent_user(environ.get("SESSIOND_AGENT_UID", ""), environ.get("SESSIOND_AGENT_GID", ""))
    return Settings(redis_url=redis_url, host_name=host, agent_user=user, times=Times(**times), **found)


def _agent_user(uid: str, gid: str) -> User | None:
    """Both or neither; never root's."""
    if not uid and not gid:
        return None
    if not (uid.isdecimal() and gid.isdecimal() and 0 < int(uid) < 2**32 - 1 and 0 < int(gid) < 2**32 - 1):
        raise SettingsError("SESSIOND_AGENT_UID, SESSIOND_AGENT_GID: must both be numbers above 0, or both be empty")
    return User(int(uid), int(gid))


def _read(name: str, read: Callable[[str], Any], text: str) -> Any:
    try:
        return read(text)
    except ValueError as error:
        raise SettingsError(f"{name}: {error}") from error
