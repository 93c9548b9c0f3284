"""Text is not a command, the checkout is not trusted; each test also shows what happens without the protection."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from servers import Model, Sessiond, claude_env, eventually
from sessiond.agent import binary
from sessiond.agent import protocol as wire

SESSION = "octo/hello"


def last_request(model: Model) -> str:
    return json.dumps([e for e in model.log() if e["tools"]][-1]["messages"])


def ask(service: Sessiond, prompt: str, **more: Any) -> Any:
    with service.client().lease(SESSION) as lease:
        if not more:
            return lease.turn(prompt).result()
        body = {"prompt": prompt, **more}
        path = {"session": SESSION, "secret": lease._secret}
        from sessiond.client.turns import Turn

        return Turn(
            lease._transport, SESSION, lease._transport.stream("POST", "/turns", body=body, **path), print
        ).result()


def test_clear_in_a_comment_wipes_nothing(sessiond: Callable[..., Sessiond], model: Model) -> None:
    service = sessiond(claude_env(model))
    ask(service, "the word is persimmon\n#say noted")
    before = service.client().view(SESSION)["agent"]["conversation"]
    ask(service, "/clear")
    ask(service, "#say still here")
    assert "persimmon" in last_request(model)
    assert service.client().view(SESSION)["agent"]["conversation"] == before
    ask(service, "/clear", raw=True)
    ask(service, "#say wiped")
    assert "persimmon" not in last_request(model)


def test_an_at_path_sends_no_file(sessiond: Callable[..., Sessiond], model: Model, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("the launch code is tangerine\n")
    service = sessiond(claude_env(model))
    ask(service, f"look at @{secret} please\n#say no")
    assert "tangerine" not in last_request(model)
    ask(service, f"look at @{secret} please\n#say yes", raw=True)
    assert "tangerine" in last_request(model)


def checkout(place: Path) -> tuple[Path, Path]:
    """(working directory, marker): a checkout whose hook and whose MCP server would write the marker."""
    work, marker = place / "octo" / "hello", place / "marker"
    (work / ".claude").mkdir(parents=True)
    (work / "CLAUDE.md").write_text("House rule: say kumquat.\n")
    hook = {"hooks": [{"type": "command", "command": f"echo hook >> {marker}"}]}
    settings = {"hooks": {"UserPromptSubmit": [hook]}, "enableAllProjectMcpServers": True}
    (work / ".claude" / "settings.json").write_text(json.dumps(settings))
    server = {"command": "sh", "args": ["-c", f"echo mcp >> {marker}; sleep 5"]}
    (work / ".mcp.json").write_text(json.dumps({"mcpServers": {"evil": server}}))
    return work, marker


def test_the_checkouts_hooks_and_servers_do_not_run(
    sessiond: Callable[..., Sessiond], model: Model, tmp_path: Path
) -> None:
    work, marker = checkout(tmp_path / "checkouts")
    service = sessiond(claude_env(model, SESSIOND_CHECKOUTS=str(tmp_path / "checkouts")))
    assert ask(service, "#say done").outcome == "completed"
    assert not marker.exists()
    request = [e for e in model.log() if e["tools"]][-1]
    assert "kumquat" in json.dumps(request["system"]), "the default branch's CLAUDE.md goes in as a system prompt"
    unprotected(model, work, tmp_path / "home")
    assert set(marker.read_text().split()) == {"hook", "mcp"}


def unprotected(model: Model, work: Path, home: Path) -> None:
    """The same binary in the same checkout, without the flags that keep the checkout out."""
    home.mkdir()
    argv = binary.claude_argv(
        binary.find_claude(), model="m", conversation="00000000-0000-4000-8000-000000000000", resume=False
    )
    at = argv.index("--setting-sources")
    argv = [word for word in (*argv[:at], *argv[at + 2 :]) if word != "--strict-mcp-config"]
    key = {"ANTHROPIC_BASE_URL": model.url, "ANTHROPIC_API_KEY": "loopback", "PATH": "/usr/bin:/bin"}
    env = binary.claude_env(key, home=home)
    lines = wire.initialize("r1") + wire.user("6a0c7c3e-6d2b-4a57-9f6e-2f0a55a1d001", "#say done")
    done = subprocess.run(argv, cwd=work, env=env, input=lines, capture_output=True, timeout=60)
    assert b'"result"' in done.stdout, done.stderr


def test_a_handlers_tools_are_denied_and_the_workers_run(
    sessiond: Callable[..., Sessiond], model: Model, tmp_path: Path
) -> None:
    service = sessiond(claude_env(model))
    client = service.client()
    tools = {
        "Bash": {"command": f"echo ran > {tmp_path}/bash"},
        "Write": {"file_path": "written.txt", "content": "x"},
    }
    work = service.state / "work" / SESSION
    made = {"Bash": tmp_path / "bash", "Write": work / "written.txt"}
    for kind in ("handler", "worker", "handler"):
        for tool, given in tools.items():
            made[tool].unlink(missing_ok=True)
            if tool == "Write":
                given = {**given, "file_path": str(work / "written.txt")}
            with client.lease(SESSION, kind=kind) as lease:
                lease.turn(f"#tool {tool} {json.dumps(given)}").result()
            assert made[tool].exists() == (kind == "worker"), (kind, tool)
    eventually(lambda: client.view(SESSION)["holder"] is None)
