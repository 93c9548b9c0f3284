"""The real claude's memory over many turns of one process."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from support.agent.conversation_history import agents, entries, of_kind
from support.servers import Model, Sessiond, claude_env
from support.size import FULL

SESSION = "octo/hello"
TURNS, EVERY = (200, 20) if FULL else (16, 4)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_the_resident_memory_stays_bounded_over_many_turns(
    sessiond: Callable[..., Sessiond], model: Model, figures: Callable[[str], None]
) -> None:
    """Every fourth turn reads a file of 40 kB, so that the conversation grows as in real use."""
    service = sessiond(claude_env(model))
    client, work = service.client(), service.state / "work" / SESSION
    work.mkdir(parents=True, exist_ok=True)
    (work / "long.txt").write_text("\n".join(f"line {i} of a file that is read" for i in range(1200)))
    megabytes: list[float] = []
    with client.lease(SESSION, kind="worker") as lease:
        for number in range(1, TURNS + 1):
            tool = f"#tool Read {json.dumps({'file_path': 'long.txt', 'offset': number})}\n" if number % 4 == 0 else ""
            result = lease.turn(f"turn {number}\n{tool}#tokens 200\n#pace 0ms").result()
            assert result.outcome == "completed"
            if number % EVERY == 0:
                claude = psutil.Process(agents(client, SESSION)[-1]["agent_pid"])
                megabytes.append(claude.memory_info().rss / 2**20)
    figures(f"MiB after every {EVERY} of {TURNS} turns: {' '.join(f'{size:.0f}' for size in megabytes)}")
    ledger = entries(client, SESSION)
    assert len(of_kind(ledger, "agent-started")) == 1, "the same process all along"
    assert of_kind(ledger, "agent-reaped", "recovery", "fault", "foreign") == []
    quarter = len(megabytes) / 4
    second, last = megabytes[int(quarter) : int(2 * quarter)], megabytes[-int(quarter) :]
    assert statistics.mean(last) <= 1.25 * statistics.mean(second), megabytes
