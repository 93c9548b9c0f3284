"""The drain on the real binary: whatever the moment, the next holder's turn is sound and nothing is recovered."""

import os
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from servers import Model, Sessiond, claude_env, eventually
from sessiond.client import LeaseLost
from sessiond.verify import verify

SESSION = "octo/hello"
CYCLES = int(os.environ.get("DRAIN_CYCLES", "60"))
PROMPTS = {
    "text": "#tokens 400\n#pace 5ms",
    "natural end": "#say it ends by itself",
    "same instant": "#tokens 400\n#pace 5ms",
    "bash": '#tool Bash {"command": "sleep 20"}',
    "open question": '#tool Read {{"file_path": "{outside}"}}\n#tokens 100\n#pace 5ms',
    "question answered meanwhile": '#tool Read {{"file_path": "{outside}"}}\n#tokens 100\n#pace 5ms',
}
MOMENTS = {
    "text": (0.0, 0.2),
    "natural end": (0.02, 0.12),
    "same instant": (0.0, 0.0),
    "bash": (0.1, 0.4),
    "open question": (0.0, 0.1),
    "question answered meanwhile": (0.0, 0.1),
}


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


def test_sixty_cycles_at_random_moments(
    sessiond: Callable[..., Sessiond], model: Model, tmp_path: Path, figures: Callable[[str], None]
) -> None:
    """`open question`: the interrupt is written while claude waits for a permission, and no answer ever comes.
    `question answered meanwhile`: the answer races the interrupt."""
    service = sessiond(claude_env(model, SESSIOND_HOOKS_DIR=str(tmp_path)))
    client, dice = service.client(), random.Random(3)
    kinds, question = list(PROMPTS), Question(tmp_path)
    (tmp_path / "outside.txt").write_text("nothing for a worker\n")
    with client.lease(SESSION) as lease:
        assert lease.turn("#say warm").result().text == "warm"

    def work(kind: str, number: int, granted: threading.Event, told: list[Any]) -> None:
        with service.client().lease(SESSION, kind="worker", key="work") as lease:
            granted.set()
            try:
                prompt = PROMPTS[kind].format(outside=tmp_path / "outside.txt") if "question" in kind else PROMPTS[kind]
                told.append(lease.turn(f"cycle {number}\n{prompt}").result().outcome)
            except LeaseLost:
                told.append("not accepted")

    outcomes: dict[str, list[str]] = {kind: [] for kind in kinds}
    for number in range(CYCLES):
        kind = kinds[number % len(kinds)]
        granted, told = threading.Event(), outcomes[kind]
        if "question" in kind:
            question.hold()
        thread = threading.Thread(target=work, args=(kind, number, granted, told))
        thread.start()
        assert granted.wait(20)
        if "question" in kind:
            eventually(question.asked, 20, "claude asks for a permission")
        answers = threading.Timer(dice.uniform(0.0, 0.03), question.answer)
        if kind == "question answered meanwhile":
            answers.start()
        time.sleep(dice.uniform(*MOMENTS[kind]))  # the random moment is what is tried here
        chosen = f"claude-model-{number}" if number % 2 else None
        with client.lease(SESSION, key=f"handler-{number}", timeout=15) as lease:
            result = lease.turn(f"#say sound {number}", model=chosen).result()
        assert (result.outcome, result.text) == ("completed", f"sound {number}")
        thread.join(15)
        answers.cancel()
        question.answer()
        assert len(told) == number // len(kinds) + 1
        # A worker that came to its natural end, or was never let in, has ended its ticket or left it queued.
        for ticket in client.view(SESSION)["queue"]:
            client.withdraw(SESSION, ticket["id"])
        eventually(lambda: client.view(SESSION)["holder"] is None)

    entries: list[dict[str, Any]] = []
    while more := client.ledger(SESSION, entries[-1]["id"] if entries else None):
        entries += more
    # Held until after the next holder's turn, so the answer must have found its question taken back.
    answered = sum(e["event"] == "denied" for e in entries)
    assert set(outcomes["open question"]) == {"cancelled"}
    assert answered <= len(outcomes["question answered meanwhile"])
    cut = [e for e in entries if e["event"] == "turn-closed" and "interrupt_to_closed_ms" in e]
    acked = [e for e in cut if "interrupt_to_ack_ms" in e]
    late = sum(e["ack_after_result"] for e in acked)
    for name in ("ticket_to_interrupt_ms", "interrupt_to_ack_ms", "interrupt_to_closed_ms"):
        ms = sorted(e[name] for e in acked)
        figures(f"{name}: median {statistics.median(ms):.1f}, max {ms[-1]:.1f}")
    became = {kind: dict(Counter(told)) for kind, told in outcomes.items()}
    figures(f"{CYCLES} cycles, {len(cut)} interrupted, {answered} questions answered: {became}")
    figures(f"acks: {len(acked) - late} before and {late} after the result")
    assert not [e for e in entries if e["event"] in ("recovery", "refused", "agent-broken")]
    assert len(acked) == len(cut) >= CYCLES // 2
    assert verify(entries).violations == []
    # Nothing is inherited: a turn without a model ran on the session's default.
    asked = {e["prompt"]: e["model"] for e in model.log() if e["prompt"].startswith("#say sound")}
    for number in range(CYCLES):
        expected = f"claude-model-{number}" if number % 2 else "claude-sonnet-4-5"
        assert asked[f"#say sound {number}"] == expected
