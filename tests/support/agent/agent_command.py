"""Runs the agent's binary as sessiond starts it, but without one protection, to show what that protection prevents."""

import subprocess
from pathlib import Path

from sessiond.agent import protocol as wire
from sessiond.agent.process import claude_binary
from support.servers import Model


def argv() -> list[str]:
    """Return the command line of a new conversation. The caller removes a flag from it."""
    conversation = "00000000-0000-4000-8000-000000000000"
    return claude_binary.claude_argv(claude_binary.find_claude(), model="m", conversation=conversation, resume=False)


def one_turn(model: Model, command: list[str], work: Path, config: Path, without: str = "") -> None:
    """Run one turn in `work`, with `config` as home and as claude's own directory, without the variable `without`."""
    key = {"ANTHROPIC_BASE_URL": model.url, "ANTHROPIC_API_KEY": "loopback", "PATH": "/usr/bin:/bin"}
    env = claude_binary.claude_env(key, home=config, config=config)
    if without:
        del env[without]
    lines = wire.initialize("r1") + wire.user("6a0c7c3e-6d2b-4a57-9f6e-2f0a55a1d001", "#say done")
    done = subprocess.run(command, cwd=work, env=env, input=lines, capture_output=True, timeout=60)
    assert b'"result"' in done.stdout, done.stderr
