"""Starts an agent from the settings: its command, environment and working directory."""

import os
import stat
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import gevent
import structlog
from gevent.subprocess import DEVNULL, Popen

from sessiond.agent.process import claude_binary
from sessiond.agent.process.agent_process import AgentProcess
from sessiond.agent.process.user import User, acting_as
from sessiond.settings import Settings

log = structlog.get_logger("sessiond.launch")

CLAUDE_MD_LIMIT: Final = 64 * 1024
"""How many bytes of CLAUDE.md the agent gets. Linux limits an argument to 128 KiB."""


@dataclass(frozen=True, slots=True)
class AgentStart:
    """Which agent to start: the session's name, its conversation, and whether to resume that."""

    settings: Settings
    session: str
    conversation: str
    resume: bool


def workdir(settings: Settings, name: str) -> Path:
    """Return the agent's working directory for a session. Create it if it is missing."""
    path = (settings.checkouts or settings.state_dir / "work").resolve() / name
    with acting_as(settings.agent_user):
        path.mkdir(parents=True, exist_ok=True)
    return path


def home_dir(settings: Settings) -> Path:
    """Return the home of the agent's tools, which also holds the conversations. All processes share it."""
    path = (settings.state_dir / "claude").resolve()
    with acting_as(settings.agent_user):
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def config_dir(settings: Settings, name: str) -> Path:
    """Create claude's own directory for one process of a session. Only the conversations in it are kept.

    The worker's Bash may write settings, hooks and skills there. No later process gets them.
    """
    home = home_dir(settings)
    place, user = home / "config" / name, settings.agent_user
    with acting_as(user):
        for path in (place, home / "projects"):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        old = [str(path) for path in place.iterdir()]
        made = place / uuid.uuid4().hex
        made.mkdir(mode=0o700)
        (made / "projects").symlink_to(home / "projects")
    if old:
        _remove(old, user)
    return made


def _remove(paths: list[str], user: User | None) -> None:
    """Remove files in a process of its own: tools leave files of any size, and a greenlet would wait for the disk."""
    uid, gid, groups = (None, None, None) if user is None else (user.uid, user.gid, [user.gid])
    removal = Popen(["rm", "-rf", "--", *paths], stderr=DEVNULL, user=uid, group=gid, extra_groups=groups)
    gevent.spawn(removal.wait)


def conversation_known(settings: Settings, conversation: str) -> bool:
    """Return whether the agent has a transcript of this conversation."""
    home = home_dir(settings)
    with acting_as(settings.agent_user):
        return any(home.glob(f"projects/*/{conversation}.json*"))


def guide(path: Path, user: User | None) -> str | None:
    """Return the text of a `CLAUDE.md` for an argument, or None. The agent starts even if the file is unreadable.

    Bytes that are not UTF-8 are left out. A link is not followed: it could lead to any file, whose text would go to
    the model.
    """
    with acting_as(user):
        try:
            text = _beginning(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("CLAUDE.md is not read", path=str(path), error=str(error))
            return None
    return None if text is None else text.replace(b"\0", b"").decode(errors="ignore")


def _beginning(path: Path) -> bytes | None:
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return os.read(file, CLAUDE_MD_LIMIT) if stat.S_ISREG(os.fstat(file).st_mode) else None
    finally:
        os.close(file)


def command(start: AgentStart, cwd: Path) -> list[str]:
    """Return the agent's argv: the bundled claude, or `agent_command`, with the same flags."""
    settings = start.settings
    text = guide(cwd / "CLAUDE.md", settings.agent_user)
    first = settings.agent_command[0] if settings.agent_command else str(claude_binary.find_claude())
    argv = claude_binary.claude_argv(
        Path(first),
        model=settings.model,
        conversation=start.conversation,
        resume=start.resume,
        web_fetch_check=settings.web_fetch_check,
        append_system_prompt=text,
    )
    return [*settings.agent_command, *argv[1:]] if settings.agent_command else argv


def launch(
    start: AgentStart, on_lines: Callable[[list[bytes]], None], on_exit: Callable[[int | None, str], None]
) -> AgentProcess:
    """Start the agent.

    Raises:
        SpawnError, NoClaude: the agent cannot start; the text is one line.
    """
    settings = start.settings
    cwd = workdir(settings, start.session)
    env = claude_binary.claude_env(
        os.environ,
        home=home_dir(settings),
        config=config_dir(settings, start.session),
        background_tasks=settings.background_tasks,
    )
    return AgentProcess.spawn(command(start, cwd), cwd, env, on_lines, on_exit, settings.agent_user)
