"""Permissions on the real binary, tested by the effects of Write, Bash and WebFetch for a handler and the worker."""

import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sessiond.agent.permissions import CHANGING, READING
from sessiond.client import Client, Lease
from support.agent.conversation_history import agents, entries, of_kind
from support.servers import Model, Sessiond, claude_env, eventually
from support.size import FULL

SESSION = "octo/hello"
BOOKKEEPING = {"TaskCreate", "TaskGet", "TaskList", "TaskStop", "TaskUpdate", "ToolSearch", "ReportFindings"}
"""Tools that change only claude's own notes in the conversation."""
TOOLS = ("Write", "Bash", "cat", "WebFetch", *(("Edit", "NotebookEdit", "Agent") if FULL else ()))


class Listener:
    """Counts the connections that reach it."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.reached = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.reached += 1
            connection.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    yield made
    made.close()


@dataclass
class Checkout:
    """A session's working directory and what tools do in it."""

    client: Client
    work: Path
    listener: Listener | None = None
    count: int = 0
    lines: list[dict[str, Any]] = field(default_factory=list)

    def use(self, lease: Lease, tool: str, given: dict[str, Any]) -> str:
        """Return the tool's result as the model gets it."""
        self.count += 1
        turn = lease.turn(f"use {self.count}\n#tool {tool} {json.dumps(given)}\n#say done {self.count}")
        self.lines = [dict(event.line) for event in turn if hasattr(event, "line")]
        assert turn.result().outcome == "completed"
        found = [
            block["content"]
            for line in self.lines
            if line["type"] == "user" and isinstance(line["message"]["content"], list)
            for block in line["message"]["content"]
            if block["type"] == "tool_result"
        ]
        return json.dumps(found)

    def effect(self, lease: Lease, tool: str) -> bool:
        """Return whether this tool had its effect."""
        place = self.work / f"{tool}-{self.count}"
        if tool == "Write":
            self.use(lease, tool, {"file_path": str(place), "content": "x"})
        elif tool == "Bash":
            self.use(lease, tool, {"command": f"echo ran > {place}"})
        elif tool == "cat":
            # claude runs a read-only command without asking, so only the rules can stop it.
            (self.work / "plum.txt").write_text("damson\n")
            return "damson" in self.use(lease, "Bash", {"command": "cat plum.txt"})
        elif tool == "Edit":
            place.write_text("before\n")
            self.use(lease, "Read", {"file_path": str(place)})
            self.use(lease, tool, {"file_path": str(place), "old_string": "before", "new_string": "after"})
            return "after" in place.read_text()
        elif tool == "NotebookEdit":
            place = place.with_suffix(".ipynb")
            place.write_text(json.dumps({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
            self.use(lease, "Read", {"file_path": str(place)})
            cell = {"new_source": "after", "edit_mode": "insert", "cell_type": "code"}
            self.use(lease, tool, {"notebook_path": str(place), **cell})
            return "after" in place.read_text()
        elif tool == "Agent":
            inner = f"#tool Write {json.dumps({'file_path': str(place), 'content': 'x'})}\n#say written"
            self.use(lease, tool, {"description": "d", "prompt": inner, "subagent_type": "general-purpose"})
        elif tool == "WebFetch" and self.listener is not None:
            before = self.listener.reached
            self.use(lease, tool, {"url": f"http://127.0.0.1:{self.listener.port}/{self.count}", "prompt": "x"})
            return self.listener.reached > before
        return place.exists()


def test_permissions_follow_the_lease_in_spite_of_events_between_turns(
    sessiond: Callable[..., Sessiond],
    model: Model,
    tmp_path: Path,
    listener: Listener,
    matrix: Callable[..., None],
) -> None:
    """Alternate handler and worker turns, with restarts and recoveries in between.

    Connections to a listener show WebFetch: claude always uses https, so there is no page. Its check of each host with
    its vendor is off, because it cannot work here.
    """
    service = sessiond(claude_env(model, SESSIOND_WEB_FETCH_CHECK="0"))
    client = service.client()
    checkout = Checkout(client, service.state / "work" / SESSION, listener)
    checkout.work.mkdir(parents=True, exist_ok=True)

    def holds(kind: str, after: str, lease: Lease) -> None:
        did = {tool: checkout.effect(lease, tool) for tool in TOOLS}
        matrix("may", kind=kind, after=after, did=" ".join(t for t, d in did.items() if d) or "nothing")
        assert did == dict.fromkeys(TOOLS, kind == "worker"), (kind, after)

    def hold(kind: str, after: str) -> None:
        with client.lease(SESSION, kind=kind, timeout=20) as lease:
            holds(kind, after, lease)

    for kind, after in [("worker", "the start"), ("handler", "a worker"), ("worker", "a handler")]:
        hold(kind, after)
    with client.lease(SESSION, kind="worker") as lease:
        turn = lease.turn("#tokens 400\n#pace 10ms")
        eventually(lambda: client.turn(SESSION, turn.id)["state"] == "started", 20)
        lease.cancel_turn(turn.id)
        assert turn.result().outcome == "cancelled"
    hold("handler", "an interruption")
    with client.lease(SESSION) as lease:
        assert lease.turn("#say mine").result().completed
        os.kill(agents(client, SESSION)[-1]["agent_pid"], signal.SIGKILL)
        eventually(lambda: of_kind(entries(client, SESSION), "agent-reaped"), 20)
        holds("handler", "kill -9 within its lease", lease)
    hold("worker", "a recovery")
    with client.lease(SESSION, kind="worker", key="work") as lease:
        turn = lease.turn('#tool Bash {"command": "sleep 60"}')
        eventually(lambda: client.turn(SESSION, turn.id)["state"] == "started", 20)
        holding = threading.Thread(target=hold, args=("handler", "a preemption"))
        holding.start()
        assert (turn.result().outcome, turn.result().reason) == ("cancelled", "preempted")
        holding.join(60)
    with client.lease(SESSION, kind="worker", key="work", timeout=20) as lease:
        holds("worker", "it was preempted", lease)


READS = {
    "an absolute path": ("Read", {"file_path": "{out}/secret.txt"}),
    "dots": ("Read", {"file_path": "../../../../secret.txt"}),
    "a blank before it": ("Read", {"file_path": " {out}/secret.txt"}),
    "a link": ("Read", {"file_path": "link.txt"}),
    "a directory's link": ("Read", {"file_path": "linked/secret.txt"}),
    "home": ("Read", {"file_path": "~/secret.txt"}),
    "another conversation": ("Read", {"file_path": "{home}/projects/-other/transcript.jsonl"}),
    "the service's keys": ("Read", {"file_path": "{out}/a/keys"}),
    "/etc": ("Read", {"file_path": "/etc/passwd"}),
    "the agent's environment": ("Read", {"file_path": "/proc/self/environ"}),
    "grep": ("Grep", {"pattern": "tangerine", "path": "{out}"}),
    "grep below a link": ("Grep", {"pattern": "t[a]ngerine", "path": "linked", "output_mode": "content"}),
    "grep at home": ("Grep", {"pattern": "t[a]ngerine", "path": "~", "output_mode": "content"}),
    "grep, its glob": ("Grep", {"pattern": "t[a]ngerine", "glob": "../../../../*.txt", "output_mode": "content"}),
    "glob": ("Glob", {"pattern": "*.txt", "path": "{out}"}),
    "glob, absolute": ("Glob", {"pattern": "{out}/*.txt"}),
    "glob, dots": ("Glob", {"pattern": "../../../../*.txt"}),
    "glob through a link": ("Glob", {"pattern": "linked/*.txt"}),
    "glob at home": ("Glob", {"pattern": "*.txt", "path": "~"}),
}
"""Attempts to read outside the working directory."""
FORBIDDEN = ("the launch word is tangerine", "secret.txt", "root:x:0", "ANTHROPIC", "admin-key", "admin admin")
WRITES = {
    "an absolute path": "{out}/written.txt",
    "dots": "../written.txt",
    "home": "~/written.txt",
    "a directory's link": "linked/written.txt",
    "a link": "link.txt",
    "a link's hooks": "linked/.git/hooks/written",
}
ELSE = {
    "plan mode": ("EnterPlanMode", {}),
    "a worktree": ("EnterWorktree", {"name": "other"}),
    "a question to a person": ("AskUserQuestion", {"questions": []}),
    "a skill": ("Skill", {"skill": "init"}),
    "a search": ("WebSearch", {"query": "tangerine"}),
    "a command through a subagent": (
        "Agent",
        {"description": "d", "subagent_type": "general-purpose", "prompt": '#tool Bash {"command": "id > ran.txt"}'},
    ),
    "many edits": ("MultiEdit", {"file_path": "plum.txt", "edits": [{"old_string": "damson", "new_string": "x"}]}),
}


def filled(value: Any, place: Path, home: Path) -> Any:
    return json.loads(json.dumps(value).replace("{out}", str(place)).replace("{home}", str(home)))


def tried_on(service: Sessiond, place: Path) -> Checkout:
    """Create a checkout with links that lead out, and secrets at their targets."""
    work, home = service.state / "work" / SESSION, service.state / "claude"
    (home / "projects" / "-other").mkdir(parents=True)
    work.mkdir(parents=True, exist_ok=True)
    for secret in (place / "secret.txt", home / "secret.txt", home / "projects" / "-other" / "transcript.jsonl"):
        secret.write_text("the launch word is tangerine\n")
    (work / "link.txt").symlink_to(place / "secret.txt")
    (work / "linked").symlink_to(place)
    (work / "plum.txt").write_text("damson\n")
    (work / "near.txt").symlink_to(work / "plum.txt")
    subprocess.run(["git", "init", "-q"], cwd=work, check=True)
    return Checkout(service.client(), work)


@pytest.mark.parametrize("kind", ["handler", "worker"] if FULL else ["handler"])
def test_reading_tools_cannot_leave_the_working_directory(
    sessiond: Callable[..., Sessiond], model: Model, tmp_path: Path, matrix: Callable[..., None], kind: str
) -> None:
    service = sessiond(claude_env(model))
    checkout = tried_on(service, tmp_path)
    with checkout.client.lease(SESSION, kind=kind) as lease:
        for file in ("plum.txt", "near.txt", str(checkout.work / "plum.txt")):
            assert "damson" in checkout.use(lease, "Read", {"file_path": file}), file
        for way, (tool, given) in READS.items():
            found = checkout.use(lease, tool, filled(given, tmp_path, service.state / "claude"))
            leaked = [word for word in FORBIDDEN if word in found]
            matrix("reading outside", kind=kind, way=way, tool=tool, leaked=leaked or "nothing")
            assert not leaked, (way, found)


def test_other_tools_are_denied_to_a_handler_and_a_worker(
    sessiond: Callable[..., Sessiond], model: Model, tmp_path: Path
) -> None:
    service = sessiond(claude_env(model))
    checkout = tried_on(service, tmp_path)
    client, work = checkout.client, checkout.work

    def look() -> set[Path]:
        kept = (service.state / "claude", service.state / "sessiond.log")
        return {p for p in tmp_path.rglob("*") if not any(p.is_relative_to(k) for k in kept)}

    with client.lease(SESSION) as lease:
        assert lease.turn("#say warm").result().completed
        before = look()
        for way, (tool, given) in ELSE.items():
            assert "tool_use_error" in (found := checkout.use(lease, tool, given)) or "denied" in found, (way, found)
        for way, path in WRITES.items():
            checkout.use(lease, "Write", {"file_path": filled(path, tmp_path, work), "content": "x"})
            assert look() == before, way
    with client.lease(SESSION, kind="worker") as lease:
        for path in ("deep/er/written.txt", ".git/hooks/pre-commit", ".mcp.json"):
            checkout.use(lease, "Write", {"file_path": str(work / path), "content": "x"})
            assert (work / path).exists(), path
        before = look()
        for way, path in WRITES.items():
            checkout.use(lease, "Write", {"file_path": filled(path, tmp_path, work), "content": "x"})
            assert look() == before, way
        for way in ("plan mode", "a worktree", "a question to a person"):
            assert "tool_use_error" in checkout.use(lease, *ELSE[way]), way
        checkout.use(lease, "Read", {"file_path": "plum.txt"})
    (init,) = (line for line in checkout.lines if line.get("subtype") == "init")
    assert (init["permissionMode"], init["cwd"]) == ("default", str(work))
    # A newer binary may bring tools that no rule names. Add them to one of these lists first.
    assert set(init["tools"]) <= READING | set(CHANGING) | BOOKKEEPING
    assert (tmp_path / "secret.txt").read_text() == "the launch word is tangerine\n"
