"""What the agent may do for whom: permissions follow the lease's kind. Pure.

A handler's turn answers a stranger's comment, so it only reads, and only inside the working
directory; the worker may write there. The rules go to the agent with the lease's first turn, and every
question that the agent still asks (`can_use_tool`) is answered from here as well.
"""

import posixpath
from typing import Final

from sessiond.agent.protocol import Question
from sessiond.lock.rules import Kind

READING: Final = frozenset({"Read", "Grep", "Glob", "LS", "NotebookRead"})
"""Let through by claude inside the working directory: it asks only about what lies, or leads, outside."""
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
"""Not offered: they begin turns, wait for a person, or change mode and directory for whoever holds next."""
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
        # `Edit` stands for all tools that write files, and holds only if a link's target is below as well.
        return ["Bash", "Edit(./**)", "WebFetch"], list(OUTSIDE)
    return [], [*CHANGING, *OUTSIDE]


def inside(path: str, cwd: str) -> bool:
    """Whether a path, as text, stays below the working directory."""
    full = posixpath.normpath(posixpath.join(cwd, path))
    return full == cwd or full.startswith(cwd.rstrip("/") + "/")


def refusal(kind: Kind, question: Question, cwd: str) -> str | None:
    """Why this use of a tool is denied, or None when it is allowed."""
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
