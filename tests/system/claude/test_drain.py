"""The drain on the real binary: at any moment, the next holder's turn works and no recovery happens."""

import os
import random
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sessiond.lock.rules import Times
from sessiond.verify import verify
from support.agent.conversation_history import CallerTurn, agents, check_history, entries, of_kind
from support.servers import Model, Sessiond, claude_env, eventually
from support.size import FULL

SESSION = "octo/hello"
DEFAULT_MODEL = "claude-sonnet-4-5"
LONG = "#tokens 400\n#pace 5ms"
OUTSIDE = f'#tool Read {{"file_path": "OUTSIDE"}}\n{LONG}'
PROMPTS = {
    "text": LONG,
    "natural end": "#say it ends by itself",
    "same instant": LONG,
    "bash": '#tool Bash {"command": "sleep 20"}',
    "before the first byte": "#delay 3s\n#say late",
    "wait before a retry": "#fail 529 x2\n#say at last",
    "open question": OUTSIDE,
    "question answered meanwhile": OUTSIDE,
}
"""Prompts by what the worker's turn does when its lease is preempted."""
MOMENTS = {
    "text": (0.0, 0.2),
    "natural end": (0.0, 0.15),
    "same instant": (0.0, 0.0),
    "bash": (0.0, 0.4),
    "before the first byte": (0.0, 0.3),
    "wait before a retry": (0.0, 0.4),
    "open question": (0.0, 0.1),
    "question answered meanwhile": (0.0, 0.1),
}
ANSWERS = {"natural end": "it ends by itself", "before the first byte": "late", "wait before a retry": "at last"}
WORDS = " ".join(f"word{i}" for i in range(400))
CYCLES, SEEDS = (50, range(6)) if FULL else (24, range(1))
NEVER = ("recovery", "refused", "agent-broken", "fault", "foreign")


class Question:
    """Holds the answers to the agent's permission questions."""

    def __init__(self, place: Path) -> None:
        self._held, self._reached = place / "question.hold", place / "question.reached"

    def hold(self) -> None:
        self._reached.unlink(missing_ok=True)
        self._held.touch()

    def asked(self) -> bool:
        return self._reached.exists()

    def answer(self) -> None:
        self._held.unlink(missing_ok=True)


class Cycles:
    """Repeats a cycle: the worker's turn, the handler's ticket at a random moment, the handler's turn."""

    def __init__(self, service: Sessiond, model: Model, place: Path, seed: int) -> None:
        self.service, self.model, self.client = service, model, service.client()
        self.seed, self.dice, self.outside = seed, random.Random(seed), place / "outside.txt"
        self.question = Question(place)
        self.outside.write_text("nothing for a worker\n")
        self.first = len(model.log())
        self.turns: list[CallerTurn] = []
        self.became: dict[str, Counter[str]] = {kind: Counter() for kind in PROMPTS}
        self.conversations: set[str] = set()

    def warm(self) -> None:
        with self.client.lease(SESSION) as lease:
            assert lease.turn("#say warm").result().text == "warm"
        self.turns.append(CallerTurn("#say warm", "completed", "warm"))

    def run(self, number: int, kind: str) -> None:
        prompt = f"cycle {self.seed}.{number}\n{PROMPTS[kind]}".replace("OUTSIDE", str(self.outside))
        begun, outcomes = threading.Event(), list[str]()
        thread = threading.Thread(target=self._work, args=(prompt, kind, begun, outcomes))
        if "question" in kind:
            self.question.hold()
        thread.start()
        assert begun.wait(20)
        if "question" in kind:
            eventually(self.question.asked, 20, "claude asks for a permission")
        meanwhile = threading.Thread(target=self._meanwhile, args=(kind, self.interrupts()))
        meanwhile.start()
        time.sleep(self.dice.uniform(*MOMENTS[kind]))  # preempt at a random moment
        sound = self._handle(number)
        thread.join(15)
        meanwhile.join(15)
        self.question.answer()
        (outcome,) = outcomes
        self.became[kind][outcome] += 1
        self.turns += [CallerTurn(prompt, outcome, ANSWERS.get(kind, WORDS)), sound]
        # A worker that finished has ended its ticket. Any other worker's ticket is still queued.
        for ticket in self.client.view(SESSION)["queue"]:
            self.client.withdraw(SESSION, ticket["id"])
        eventually(lambda: self.client.view(SESSION)["holder"] is None)

    def interrupts(self) -> int:
        return len(of_kind(entries(self.client, SESSION), "interrupt"))

    def _meanwhile(self, kind: str, before: int) -> None:
        """Act at the same time as the handler's ticket."""
        if kind == "question answered meanwhile":
            time.sleep(self.dice.uniform(0.0, 0.03))
            self.question.answer()
        elif kind == "same instant":
            # claude is suspended while both lines are written, and then reads them together.
            eventually(lambda: self.interrupts() > before, 4, "the interrupt is written")
            os.kill(self.claude(), signal.SIGCONT)

    def claude(self) -> int:
        return agents(self.client, SESSION)[-1]["agent_pid"]

    def _work(self, prompt: str, kind: str, begun: threading.Event, outcomes: list[str]) -> None:
        with self.service.client().lease(SESSION, kind="worker", key="work") as lease:
            if kind == "same instant":
                # Rules and model are set already, so the user line follows the acceptance directly.
                assert lease.turn("#say ready").result().text == "ready"
                self.turns.append(CallerTurn("#say ready", "completed", "ready"))
                os.kill(self.claude(), signal.SIGSTOP)
            turn = lease.turn(prompt)
            begun.set()
            outcomes.append(turn.result().outcome)

    def _handle(self, number: int) -> CallerTurn:
        prompt, text = f"handler {number}\n#say sound {number}", f"sound {number}"
        with self.client.lease(SESSION, key=f"handler-{number}", timeout=15) as lease:
            result = lease.turn(prompt, model=f"claude-model-{number}").result()
        assert (result.outcome, result.text) == ("completed", text)
        assert result.conversation["generation"] == 1
        self.conversations.add(result.conversation["id"])
        return CallerTurn(prompt, "completed", text)

    def remembers(self) -> None:
        """Check that the last request's history has exactly the turns so far."""
        requests = [e for e in self.model.log(self.first) if e["tools"]]
        # The last request does not include its own answer.
        *earlier, last = self.turns
        check_history(requests[-1]["messages"], [*earlier, CallerTurn(last.prompt, "asked", "")])

    def models(self) -> None:
        """Check that a turn without a model ran on the session's default."""
        for entry in (e for e in self.model.log(self.first) if e["tools"]):
            word, _, number = entry["prompt"].partition("\n")[0].partition(" ")
            expected = f"claude-model-{number}" if word == "handler" else DEFAULT_MODEL
            assert entry["model"] == expected, entry["prompt"]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_next_turn_works_after_a_preemption_at_a_random_moment(
    sessiond: Callable[..., Sessiond], model: Model, tmp_path: Path, figures: Callable[[str], None], seed: int
) -> None:
    """Preempt turns at random moments.

    `open question`: the interrupt is written while claude waits for a permission that is never answered.
    `question answered meanwhile`: the answer races the interrupt.
    """
    cycles = Cycles(sessiond(claude_env(model, SESSIOND_HOOKS_DIR=str(tmp_path))), model, tmp_path, seed)
    cycles.warm()
    kinds = list(PROMPTS)
    for number in range(CYCLES):
        cycles.run(number, kinds[number % len(kinds)])
        if number % 10 == 9 or number == CYCLES - 1:
            cycles.remembers()
    cycles.models()
    ledger = entries(cycles.client, SESSION)
    assert of_kind(ledger, *NEVER) == []
    assert len(of_kind(ledger, "agent-started")) == len(cycles.conversations) == 1
    assert verify(ledger).violations == []
    interrupts(ledger, figures)
    for kind, became in cycles.became.items():
        figures(f"{kind}: {dict(became)}")
    for kind, became in cycles.became.items():
        assert set(became) <= {"cancelled", "completed" if kind == "natural end" else "cancelled"}, kind
    # The answer comes only after the next holder's turn, so its question was withdrawn before.
    assert len(of_kind(ledger, "denied")) <= cycles.became["question answered meanwhile"].total()


def interrupts(ledger: list[dict[str, Any]], figures: Callable[[str], None]) -> None:
    """Check that every interrupt was acknowledged in time."""
    cut = [e for e in of_kind(ledger, "turn-closed") if "interrupt_to_closed_ms" in e]
    acked = [e for e in cut if "interrupt_to_ack_ms" in e]
    assert len(of_kind(ledger, "interrupt")) == len(cut) == len(acked) >= CYCLES // 2
    for name in ("ticket_to_interrupt_ms", "interrupt_to_ack_ms", "interrupt_to_closed_ms"):
        ms = sorted(e[name] for e in acked)
        high = ms[min(len(ms) - 1, len(ms) * 99 // 100)]
        figures(f"{name}: median {statistics.median(ms):.1f}, p99 {high:.1f}, max {ms[-1]:.1f}")
        assert ms[-1] < Times().drain_deadline * 1000
    late = sum(e["ack_after_result"] for e in acked)
    figures(f"{CYCLES} cycles, {len(acked)} interrupted; acks: {len(acked) - late} before and {late} after the result")
