"""From settings to a running agent: command, environment, working directory."""

import os
import stat
import uuid
from collections.abc import Callable
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
"""Bytes of it that go in: Linux takes no argument above 128 KiB."""


def workdir(settings: Settings, name: str) -> Path:
    """The agent's working directory for a session, made if it is not there."""
    path = (settings.checkouts or settings.state_dir / "work").resolve() / name
    with acting_as(settings.agent_user):
        path.mkdir(parents=True, exist_ok=True)
    return path


def home_dir(settings: Settings) -> Path:
    """The home of the agent's tools, where the conversations are kept too; outlives every process."""
    path = (settings.state_dir / "claude").resolve()
    with acting_as(settings.agent_user):
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def config_dir(settings: Settings, name: str) -> Path:
    """claude's own directory for one process of session `name`: a new one, but for the conversations.

    The worker's Bash may write what it likes there (settings, hooks, guides, skills); it ends with the process.
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
    """In a process of its own: what a tool left may be of any size, and a greenlet would wait for the disk."""
    uid, gid, groups = (None, None, None) if user is None else (user.uid, user.gid, [user.gid])
    removing = Popen(["rm", "-rf", "--", *paths], stderr=DEVNULL, user=uid, group=gid, extra_groups=groups)
    gevent.spawn(removing.wait)


def conversation_known(settings: Settings, conversation: str) -> bool:
    """Whether the agent has a transcript of this conversation."""
    home = home_dir(settings)
    with acting_as(settings.agent_user):
        return any(home.glob(f"projects/*/{conversation}.json*"))


def guide(path: Path, user: User | None) -> str | None:
    """The text of a `CLAUDE.md` as an argument can hold it, None for one that cannot be had: it must stop no agent.

    What is no UTF-8 is left out. A link could lead anywhere, and what it leads to would go to the model: not followed.
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


def command(settings: Settings, cwd: Path, conversation: str, resume: bool) -> list[str]:
    """The agent's argv: the bundled claude, or `agent_command` with the same flags."""
    text = guide(cwd / "CLAUDE.md", settings.agent_user)
    first = settings.agent_command[0] if settings.agent_command else str(claude_binary.find_claude())
    argv = claude_binary.claude_argv(
        Path(first),
        model=settings.model,
        conversation=conversation,
        resume=resume,
        web_fetch_check=settings.web_fetch_check,
        append_system_prompt=text,
    )
    return [*settings.agent_command, *argv[1:]] if settings.agent_command else argv


def launch(
    settings: Settings,
    name: str,
    conversation: str,
    resume: bool,
    on_lines: Callable[[list[bytes]], None],
    on_exit: Callable[[int | None, str], None],
) -> AgentProcess:
    """Starts the agent of session `name`. Raises pipes.SpawnError or binary.NoClaude, one line each."""
    cwd = workdir(settings, name)
    env = claude_binary.claude_env(
        os.environ,
        home=home_dir(settings),
        config=config_dir(settings, name),
        background_tasks=settings.background_tasks,
    )
    argv = command(settings, cwd, conversation, resume)
    return AgentProcess.spawn(argv, cwd, env, on_lines, on_exit, settings.agent_user)
