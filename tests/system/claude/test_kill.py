"""kill -9 of the real claude, its guard or its owner at random moments. Then the conversation continues."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from sessiond.client import TurnResult
from sessiond.verify import verify
from support.agent.conversation_history import CallerTurn, agents, check_history, entries, of_kind
from support.servers import Model, Sessiond, alive, claude_env, eventually, tree
from support.size import FULL

SESSION = "octo/hello"
ROUNDS = {"claude": 10, "guard": 6, "sessiond": 6} if FULL else {"claude": 2, "guard": 1, "sessiond": 1}
MOMENTS = ("in a tool", "in a text", "at the start", "idle", "at the end", "before the turn")
LONGEST = {"in a tool": 0.3, "in a text": 0.8, "at the start": 0.02, "at the end": 0.15}
"""The kill comes within this many seconds of the turn. At other moments it comes before the turn."""
TOOL = "while true; do date +%s.%N >> {file}; sleep 0.02; done"
LONG = " ".join(f"word{i}" for i in range(200))


class Rounds:
    """A worker's lease and its turns."""

    def __init__(self, service: Sessiond, model: Model, victim: str, place: Path) -> None:
        self.service, self.model, self.victim, self.place = service, model, victim, place
        self.client, self.dice = service.client(), random.Random(victim)
        self.first = len(model.log())
        self.turns: list[CallerTurn] = []
        self.seen: dict[int, psutil.Process] = {}
        self.kills = 0

    def kill(self) -> None:
        self.kills += 1
        guard = agents(self.client, SESSION)[-1]
        self.seen |= {p.pid: p for p in tree(guard["pid"])}
        if self.victim == "sessiond":
            self.service.kill9()
        else:
            os.kill(guard["agent_pid" if self.victim == "claude" else "pid"], signal.SIGKILL)

    def back(self) -> None:
        if self.victim == "sessiond":
            self.service.start()

    def settled(self) -> None:
        """Wait until the killed tree is reaped. No process of it or of an earlier one may be left."""
        eventually(lambda: len(of_kind(entries(self.client, SESSION), "agent-reaped")) == self.kills, 20, "reaped")
        assert [p for p in self.seen.values() if alive(p)] == []

    def prompt(self, moment: str, number: int) -> tuple[str, str]:
        """Return (prompt, complete answer of the model)."""
        if moment == "in a tool":
            command = {"command": TOOL.format(file=self.place / f"{number}.ticks")}
            return f"round {number}\n#tool Bash {json.dumps(command)}\n#say never", "never"
        if moment in ("at the end", "before the turn"):
            return f"round {number}\n#say short {number}", f"short {number}"
        return f"round {number}\n#tokens 200\n#pace 5ms", LONG

    def cut(self, lease: Any, moment: str, number: int) -> TurnResult:
        """Start a turn, and kill at a random moment of it."""
        prompt, whole = self.prompt(moment, number)
        if moment == "before the turn":
            self.kill()
            self.back()
        turn = lease.turn(prompt)
        if moment == "in a tool":
            eventually(lambda: self.ticks(number), 20, "the tool runs")
        elif moment in ("in a text", "at the end"):
            eventually(lambda: self.client.turn(SESSION, turn.id)["state"] != "accepted", 20, "the turn is started")
        if moment in LONGEST:
            time.sleep(self.dice.uniform(0.0, LONGEST[moment]))  # kill at a random moment
            self.kill()
            self.back()
        result: TurnResult = turn.result()
        self.turns.append(CallerTurn(prompt, result.outcome, whole))
        return result

    def ticks(self, number: int) -> list[float]:
        file = self.place / f"{number}.ticks"
        return [float(line) for line in file.read_text().splitlines()] if file.exists() else []

    def sound(self, lease: Any, text: str) -> None:
        prompt = f"#say {text}"
        result = lease.turn(prompt).result()
        assert (result.outcome, result.text) == ("completed", text)
        assert result.conversation["generation"] == 1
        self.turns.append(CallerTurn(prompt, "completed", text))

    def remembers(self) -> None:
        """Check that the last request's history has the turns so far, and that no prompt was sent twice."""
        requests = [e for e in self.model.log(self.first) if e["tools"]]
        *earlier, last = self.turns
        check_history(requests[-1]["messages"], [*earlier, CallerTurn(last.prompt, "asked", "")])
        asked = [e["prompt"] for e in requests]
        for said in self.turns:
            assert asked.count(said.prompt) <= 1, f"sent again: {said}"


def in_order(ledger: list[Any]) -> None:
    """Check that no agent starts before the previous one is reaped."""
    life = [e["event"] for e in of_kind(ledger, "agent-starting", "agent-started", "agent-reaped")]
    assert life[:2] == ["agent-starting", "agent-started"]
    for before, after in pairwise(life):
        allowed = {"agent-starting": ("agent-started", "agent-reaped"), "agent-started": ("agent-reaped",)}
        assert after in allowed.get(before, ("agent-starting",)), life


@pytest.mark.parametrize("victim", ROUNDS)
def test_the_conversation_continues_without_the_killed_turn(
    sessiond: Callable[..., Sessiond], model: Model, tmp_path: Path, matrix: Callable[..., None], victim: str
) -> None:
    rounds = Rounds(sessiond(claude_env(model)), model, victim, tmp_path)
    with rounds.client.lease(SESSION, kind="worker", key="work") as lease:
        rounds.sound(lease, "begun")
        for number in range(ROUNDS[victim]):
            moment = MOMENTS[number % len(MOMENTS)]
            outcome = "none"
            if moment == "idle":
                time.sleep(rounds.dice.uniform(0.0, 0.3))  # kill at a random moment
                rounds.kill()
                rounds.back()
            else:
                result = rounds.cut(lease, moment, number)
                outcome = result.outcome
                possible = ("lost",) if moment in ("in a tool", "in a text") else ("lost", "completed")
                assert outcome in possible, (moment, result)
            if moment != "before the turn":
                rounds.settled()
            rounds.sound(lease, f"sound {number}")
            rounds.settled()
            rounds.remembers()
            matrix("killed with -9", victim=victim, moment=moment, turn=outcome, next_="completed")
    ledger = entries(rounds.client, SESSION)
    in_order(ledger)
    assert len(of_kind(ledger, "agent-started")) == ROUNDS[victim] + 1
    assert of_kind(ledger, "refused", "agent-broken", "fault", "recovery") == []
    assert [entry["why"] for entry in of_kind(ledger, "conversation")] == ["first prompt"]
    assert verify(ledger).violations == []
    begun = [datetime.fromisoformat(e["at"]).timestamp() for e in of_kind(ledger, "agent-starting")]
    for number in range(0, ROUNDS[victim], len(MOMENTS)):
        # The ledger's times have millisecond precision.
        assert rounds.ticks(number)[-1] < begun[number + 1] + 0.001, "the tool ran on while the next agent did"
