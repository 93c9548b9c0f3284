"""The drain on the real binary: whatever the moment, the next holder's turn is sound and nothing is recovered."""

import os
import random
import statistics
import threading
import time
from collections.abc import Callable
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
    "question": '#tool Read {"file_path": "/etc/services"}\n#tokens 100\n#pace 5ms',
}
MOMENTS = {
    "text": (0.0, 0.2),
    "natural end": (0.02, 0.12),
    "same instant": (0.0, 0.0),
    "bash": (0.1, 0.4),
    "question": (0.02, 0.15),
}


def test_sixty_cycles_at_random_moments(sessiond: Callable[..., Sessiond], model: Model) -> None:
    service = sessiond(claude_env(model))
    client, dice = service.client(), random.Random(3)
    kinds = list(PROMPTS)
    with client.lease(SESSION) as lease:
        assert lease.turn("#say warm").result().text == "warm"

    def work(kind: str, number: int, granted: threading.Event, told: list[Any]) -> None:
        with service.client().lease(SESSION, kind="worker", key="work") as lease:
            granted.set()
            try:
                told.append(lease.turn(f"cycle {number}\n{PROMPTS[kind]}").result().outcome)
            except LeaseLost:
                told.append("not accepted")

    outcomes: dict[str, list[str]] = {kind: [] for kind in kinds}
    for number in range(CYCLES):
        kind = kinds[number % len(kinds)]
        granted, told = threading.Event(), outcomes[kind]
        thread = threading.Thread(target=work, args=(kind, number, granted, told))
        thread.start()
        assert granted.wait(20)
        time.sleep(dice.uniform(*MOMENTS[kind]))  # the random moment is what is tried here
        chosen = f"claude-model-{number}" if number % 2 else None
        with client.lease(SESSION, key=f"handler-{number}", timeout=15) as lease:
            result = lease.turn(f"#say sound {number}", model=chosen).result()
        assert (result.outcome, result.text) == ("completed", f"sound {number}")
        thread.join(15)
        assert len(told) == number // len(kinds) + 1
        # A worker that came to its natural end, or was never let in, has ended its ticket or left it queued.
        for ticket in client.view(SESSION)["queue"]:
            client.withdraw(SESSION, ticket["id"])
        eventually(lambda: client.view(SESSION)["holder"] is None)

    entries: list[dict[str, Any]] = []
    while more := client.ledger(SESSION, entries[-1]["id"] if entries else None):
        entries += more
    cut = [e for e in entries if e["event"] == "turn-closed" and "interrupt_to_closed_ms" in e]
    acked = [e for e in cut if "interrupt_to_ack_ms" in e]
    late = sum(e["ack_after_result"] for e in acked)
    for name in ("ticket_to_interrupt_ms", "interrupt_to_ack_ms", "interrupt_to_closed_ms"):
        ms = sorted(e[name] for e in acked)
        print(f"{name}: median {statistics.median(ms):.1f}, max {ms[-1]:.1f} ms")
    print(
        f"{CYCLES} cycles, {len(cut)} interrupted, acks {len(acked) - late} before and {late} after the result;",
        outcomes,
    )
    assert not [e for e in entries if e["event"] in ("recovery", "refused", "agent-broken")]
    assert len(acked) == len(cut) >= CYCLES // 2
    assert verify(entries).violations == []
    # Nothing is inherited: a turn without a model ran on the session's default.
    asked = {e["prompt"]: e["model"] for e in model.log() if e["prompt"].startswith("#say sound")}
    for number in range(CYCLES):
        expected = f"claude-model-{number}" if number % 2 else "claude-sonnet-4-5"
        assert asked[f"#say sound {number}"] == expected
