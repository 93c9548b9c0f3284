"""Interrupts on the real binary, by moment (tool, permission question, text) and by cause."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from sessiond.client import Client, Lease, TurnResult
from sessiond.verify import verify
from support.agent.conversation_history import entries, of_kind
from support.servers import Model, Sessiond, claude_env, eventually
from support.size import FULL

SESSION = "octo/hello"
CAUSES = {
    "preempted": ("cancelled", "preempted"),
    "cancelled by its holder": ("cancelled", "cancelled"),
    "its timeout": ("failed", "timeout"),
    "force-release": ("cancelled", "forced"),
}
"""Causes of the interrupt, and the turn's (outcome, reason)."""


def running(marker: str) -> list[psutil.Process]:
    """Return every process with this marker in its command line."""
    found = psutil.process_iter(["cmdline"])
    return [p for p in found if any(marker in part for part in p.info["cmdline"] or ())]


@dataclass(frozen=True)
class Place:
    """The service, with prompts for the states of a turn and checks of them."""

    service: Sessiond
    client: Client
    hooks: Path
    marker: str
    """The seconds that the tool sleeps. No other process has this argument."""

    def tool(self) -> str:
        return self._bash(f"sleep {self.marker}")

    def session_of_its_own(self) -> str:
        return self._bash(f"setsid sleep {self.marker} & wait")

    def _bash(self, command: str) -> str:
        return f"#tool Bash {json.dumps({'command': command})}\n#say the tool was not interrupted"

    def question(self) -> str:
        (self.hooks / "question.reached").unlink(missing_ok=True)
        (self.hooks / "question.hold").touch()
        given = {"file_path": str(self.hooks / "outside.txt")}
        return f"#tool Read {json.dumps(given)}\n#say the question was answered"

    def in_tool(self) -> bool:
        return any(p.info["cmdline"] == ["sleep", self.marker] for p in self.left())

    def asked(self) -> bool:
        return (self.hooks / "question.reached").exists()

    def left(self) -> list[psutil.Process]:
        return running(self.marker)


def cut(place: Place, lease: Lease, turn: Any, cause: str, result: Callable[[], TurnResult]) -> TurnResult:
    """Interrupt the turn for this cause and return its result."""
    if cause == "cancelled by its holder":
        lease.cancel_turn(turn.id)
    elif cause == "force-release":
        place.client.force_release(SESSION, lease.fence, "tried")
    elif cause == "preempted":
        preempting = threading.Thread(target=sound, args=(place.service.client(), "preempting"))
        preempting.start()
        found = result()
        preempting.join(20)
        return found
    return result()


def sound(client: Client, text: str) -> None:
    with client.lease(SESSION, key=text, timeout=15) as lease:
        result = lease.turn(f"#say {text}").result()
        assert (result.outcome, result.text) == ("completed", text)


@pytest.mark.parametrize("cause", CAUSES if FULL else list(CAUSES)[:1])
def test_an_interrupted_turn_has_its_exact_outcome_and_leaves_no_process(
    sessiond: Callable[..., Sessiond], model: Model, tmp_path: Path, matrix: Callable[..., None], cause: str
) -> None:
    service = sessiond(claude_env(model, SESSIOND_HOOKS_DIR=str(tmp_path)))
    (tmp_path / "outside.txt").write_text("nothing for a worker\n")
    place = Place(service, service.client(), tmp_path, f"600.{service.port}")
    sound(place.client, "warm")
    moments = {
        "a running tool": (place.tool, place.in_tool),
        "a tool in a session of its own": (place.session_of_its_own, place.in_tool),
        "an open question": (place.question, place.asked),
    }
    for number, (moment, (prompt, reached)) in enumerate(moments.items()):
        with place.client.lease(SESSION, kind="worker", key=f"work-{number}") as lease:
            turn = lease.turn(prompt(), timeout=1.5 if cause == "its timeout" else None)
            eventually(reached, 20, moment)
            result = cut(place, lease, turn, cause, turn.result)
            assert (result.outcome, result.reason, result.text) == (*CAUSES[cause], ""), moment
            eventually(lambda: not place.left(), 2, lambda: f"no process of the tool left: {place.left()}")
        (tmp_path / "question.hold").unlink(missing_ok=True)
        for ticket in place.client.view(SESSION)["queue"]:
            place.client.withdraw(SESSION, ticket["id"])
        sound(place.client, f"sound {number}")
        matrix("interrupts", in_=moment, cause=cause, outcome=result.outcome, reason=result.reason)
    ledger = entries(place.client, SESSION)
    assert len(of_kind(ledger, "interrupt")) == len(moments)
    assert of_kind(ledger, "recovery", "refused", "agent-broken", "fault", "denied") == []
    assert len(of_kind(ledger, "agent-started")) == 1
    assert verify(ledger).violations == []
