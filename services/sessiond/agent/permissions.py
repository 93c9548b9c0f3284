"""What the agent may do for whom: permissions follow the lease's kind. Pure.

A handler's turn answers a stranger's comment, so it only reads, and only inside the working
directory; the worker may write. The rules go to the agent with the lease's first turn, and every
question that the agent still asks (`can_use_tool`) is answered from here as well.
"""

import posixpath
from collections.abc import Mapping
from typing import Any, Final

from sessiond.lock.rules import Kind

READING: Final = frozenset({"Read", "Grep", "Glob", "LS", "NotebookRead", "TodoWrite", "TaskList", "TaskGet"})
CHANGING: Final = (
    "Bash", "BashOutput", "KillShell", "Write", "Edit", "MultiEdit", "NotebookEdit", "WebFetch", "WebSearch",
    "Task", "Agent", "Skill",
)  # fmt: skip
NEVER: Final = frozenset({"Monitor", "ScheduleWakeup", "SendMessage", "ListAgents", "Workflow", "AskUserQuestion"})
OUTSIDE: Final = (
    "Read(//etc/**)",
    "Read(//proc/**)",
    "Read(//sys/**)",
    "Read(//root/**)",
    "Read(//run/**)",
    "Read(~/.*/**)",
)
PATH_FIELDS: Final = ("file_path", "path", "notebook_path")


def rules_for(kind: Kind) -> tuple[list[str], list[str]]:
    """The (allow, deny) lists of `apply_flag_settings` for a lease of this kind."""
    if kind is Kind.WORKER:
        return ["Bash", "Write", "Edit", "MultiEdit", "NotebookEdit", "WebFetch"], list(OUTSIDE)
    return [], [*CHANGING, *OUTSIDE]


def inside(path: str, cwd: str) -> bool:
    """Whether a path, as text, stays below the working directory."""
    full = posixpath.normpath(posixpath.join(cwd, path))
    return full == cwd or full.startswith(cwd.rstrip("/") + "/")


def refusal(kind: Kind, tool: str, given: Mapping[str, Any], cwd: str) -> str | None:
    """Why this use of a tool is denied, or None when it is allowed."""
    if tool in NEVER:
        return f"{tool} is not available here"
    if kind is Kind.HANDLER and tool not in READING:
        return f"{tool} is not allowed: this turn answers a comment and may only read"
    for name in PATH_FIELDS:
        path = given.get(name)
        if isinstance(path, str) and not inside(path, cwd):
            return f"{path} is outside the working directory"
    return None
