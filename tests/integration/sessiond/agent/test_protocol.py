"""The scripted agent follows the same protocol as the real one."""

import json
import subprocess
from typing import Any

import pytest

from sessiond.agent import protocol as wire
from support.servers import SCRIPTED


class Pipe:
    """The scripted agent over plain pipes."""

    def __init__(self, tmp_path: Any, *faults: str) -> None:
        command = [*SCRIPTED, *(f"--fault={f}" for f in faults), "--session-id", "s1"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"CLAUDE_CONFIG_DIR": str(tmp_path)}
        )

    def write(self, *lines: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"".join(lines))
        self.process.stdin.flush()

    def until(self, kind: type) -> list[Any]:
        assert self.process.stdout is not None
        found: list[Any] = []
        for line in self.process.stdout:
            found.append(wire.parse(line).message)
            if isinstance(found[-1], kind):
                return found
        raise AssertionError(f"ended after {found}")

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(5)
        self.process.stdout.close()


@pytest.fixture
def pipe(tmp_path: Any) -> Any:
    made: list[Pipe] = []

    def start(*faults: str) -> Pipe:
        made.append(Pipe(tmp_path, *faults))
        return made[-1]

    yield start
    for one in made:
        one.close()


def test_a_turn_reports_queued_started_init_result_completed_idle(pipe: Any) -> None:
    agent = pipe()
    agent.write(wire.initialize("r1"), wire.user("u1", "hello\n#say there"))
    heard = [*agent.until(wire.Result), *agent.until(wire.StateChanged)]
    states = [m.state for m in heard if isinstance(m, wire.Lifecycle)]
    result = next(m for m in heard if isinstance(m, wire.Result))
    assert states == ["queued", "started", "completed"]
    assert (result.uuids, result.text, result.is_error) == (("u1",), "there", False)
    assert heard[-1] == wire.StateChanged("idle")


def test_an_interrupt_in_the_same_write_leaves_no_result(pipe: Any) -> None:
    agent = pipe()
    agent.write(wire.user("u1", "#tokens 500"), wire.interrupt("r1"), wire.cost("r2"))
    heard = agent.until(wire.Response)
    heard += agent.until(wire.Response)
    assert not [m for m in heard if isinstance(m, wire.Result) and m.terminal_reason == "completed"]
    assert [m.request_id for m in heard if isinstance(m, wire.Response)] == ["r1", "r2"]


def test_a_conversation_is_resumed_with_its_history(pipe: Any) -> None:
    agent = pipe()
    agent.write(wire.user("u1", "first"))
    agent.until(wire.Result)
    agent.write(wire.user("u2", "#history"))
    assert json.loads(agent.until(wire.Result)[-1].text) == ["first", "#history"]
