"""Permissions of the agent, which follow the lease's kind. Pure.

A handler's turn answers a stranger's comment, so it may only read, and only inside the working directory.
The worker may also write there. The agent gets the rules with the lease's first turn. This module also
answers every permission question (`can_use_tool`) that the agent still asks.
"""

import posixpath
from typing import Final

from sessiond.agent.protocol import Question
from sessiond.lock.rules import Kind

READING: Final = frozenset({"Read", "Grep", "Glob", "LS", "NotebookRead"})
"""Tools that claude allows inside the working directory. It asks only about paths that lie, or link, outside."""
CHANGING: Final = (
    "Bash", "BashOutput", "KillShell", "Write", "Edit", "MultiEdit", "NotebookEdit", "WebFetch", "WebSearch",
    "Task", "Agent", "Skill",
)  # fmt: skip
NEVER: Final = frozenset(
    {
        "Monitor", "ScheduleWakeup", "SendMessage", "ListAgents", "Workflow", "AskUserQuestion",
        "EnterPlanMode", "ExitPlanMode", "EnterWorktree", "ExitWorktree",
    }
)  # fmt: skip
"""Tools that are never offered: they start turns, wait for a person, or change mode or directory for later holders."""
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
    """Return the (allow, deny) lists of `apply_flag_settings` for a lease of this kind."""
    if kind is Kind.WORKER:
        # `Edit` covers all tools that write files. claude applies it to the target of a link as well.
        return ["Bash", "Edit(./**)", "WebFetch"], list(OUTSIDE)
    return [], [*CHANGING, *OUTSIDE]


def inside(path: str, cwd: str) -> bool:
    """Return whether the path, taken as text, stays below the working directory."""
    full = posixpath.normpath(posixpath.join(cwd, path))
    return full == cwd or full.startswith(cwd.rstrip("/") + "/")


def refusal(kind: Kind, question: Question, cwd: str) -> str | None:
    """Return why this use of a tool is denied, or None if it is allowed."""
    tool, given = question.tool, question.input
    if tool in NEVER:
        return f"{tool} is not available here"
    if tool in READING:
        return f"{tool} is allowed only inside the working directory"
    if kind is Kind.HANDLER:
        return f"{tool} is not allowed: this turn answers a comment and may only read"
    for path in (*(given.get(name) for name in PATH_FIELDS), question.leads_to):
        if isinstance(path, str) and not inside(path, cwd):
            return f"{path} is outside the working directory"
    return None
