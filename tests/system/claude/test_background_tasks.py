"""The agent never outlives its owner: kill -9 of sessiond while a tool of the real claude writes a file."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.servers import Model, Sessiond, claude_env, eventually
from support.size import FULL

SESSION = "octo/hello"
ROUNDS = 3 if FULL else 1
TOOL = "while true; do echo x >> {file}; sleep 0.1; done"


def test_no_tool_runs_on_after_kill_9_of_sessiond(
    sessiond: Callable[..., Sessiond], model: Model, tmp_path: Path, figures: Callable[[str], None]
) -> None:
    service = sessiond(claude_env(model))
    client = service.client()
    for number in range(ROUNDS):
        file = tmp_path / f"appended-{number}"
        results: list[Any] = []
        command = json.dumps({"command": TOOL.format(file=file)})

        def hold(command: str = command, results: list[Any] = results, number: int = number) -> None:
            with service.client().lease(SESSION, kind="worker", key=f"work-{number}") as lease:
                results.append(lease.turn(f"#say completed turn {number}").result())
                results.append(lease.turn(f"#tool Bash {command}").result())
                results.append(lease.turn(f"#say resumed {number}").result())

        thread = threading.Thread(target=hold)
        thread.start()
        eventually(lambda file=file: file.exists() and file.stat().st_size > 6, 20)
        before = client.view(SESSION)
        service.kill9()
        killed = time.monotonic()
        eventually(lambda: not service.left(), 2.5, f"no child left: {service.left()}")
        size = file.stat().st_size
        figures(f"round {number}: the tree was gone after {(time.monotonic() - killed) * 1000:.0f} ms")
        service.start()
        after = client.view(SESSION)
        assert file.stat().st_size == size
        assert after["holder"]["fence"] == before["holder"]["fence"]
        thread.join(40)
        assert [t.outcome for t in results] == ["completed", "lost", "completed"], results
        assert results[2].text == f"resumed {number}"
        assert results[2].conversation["id"] == before["agent"]["conversation"]["id"]
        history = json.dumps(model.log()[-1]["messages"])
        assert all(f"completed turn {n}" in history for n in range(number + 1))
        assert file.stat().st_size == size
