"""`make demo`: the whole story on real parts. The last line is one JSON object; exit 1 if it is not so.

A worker is in the middle of a long turn when A, B and C arrive within 20 ms. The claude is the real
one, the model behind it a loopback one, and each caller a process of its own. What is printed at the
end is read from the ledger and from the model's log, not from what the callers say.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from servers import Model, Redis, Sessiond, claude_env, eventually
from sessiond.client import AgentEvent, connect
from sessiond.verify import verify

SESSION = "octo/hello"
LONG = "#tokens 400\n#pace 50ms"
STARTED = float(os.environ.setdefault("DEMO_STARTED", str(time.time())))


def say(who: str, what: str) -> None:
    print(f"{time.time() - STARTED:7.3f}  {who:<8} {what}", flush=True)


def worker(url: str, key: str) -> None:
    """A long task: interrupted at any moment, it comes back and says so to the model."""
    client, prompt = connect(url, key), f"Task: count to four hundred.\n{LONG}"
    while True:
        with client.lease(SESSION, kind="worker", key="task-1") as lease:
            say("worker", f"holds the lease, fence {lease.fence & 0xFFFFF}")
            for event in lease.turn(prompt):
                if isinstance(event, AgentEvent) and event.line.get("subtype") == "init":
                    say("worker", "its turn runs")
            result = event
            say("worker", f"turn {result.outcome} ({result.reason or 'done'})")
            if result.outcome == "completed":
                return
        prompt = (
            f"You were interrupted in the middle of your task: {result.reason} by a handler's comment, which has been "
            "answered since. Go on with the task where you stopped.\n#say the worker has continued"
        )


def handler(url: str, key: str, name: str) -> None:
    """A comment that wants an answer."""
    sys.stdin.readline()  # all three are ready; this is the moment at which the comment arrives
    client = connect(url, key)
    with client.lease(SESSION, key=f"comment-{name}") as lease:
        say(name, f"holds the lease, fence {lease.fence & 0xFFFFF}")
        result = lease.turn(f"Comment {name} by a person. Answer it.\n#say the answer to {name}").result()
        say(name, f"turn {result.outcome}: {result.text}")


def show(service: Sessiond) -> None:
    """The ledger as it comes."""
    shown = {"taken", "ended", "draining", "drained", "granted", "interrupt", "turn-closed", "agent-starting"}
    for entry in service.client("viewer").follow_ledger(SESSION):
        if entry["event"] in shown:
            rest = {k: entry[k] for k in ("kind", "key", "reason", "why", "how", "outcome") if entry.get(k)}
            say("ledger", f"{entry['event']} {' '.join(f'{k}={v}' for k, v in rest.items())}")


def run(service: Sessiond) -> list[dict[str, Any]]:
    def spawn(role: str, *words: str) -> "subprocess.Popen[str]":
        command = [sys.executable, __file__, *words, service.url, service.keys[role]]
        return subprocess.Popen(command, stdin=subprocess.PIPE, text=True)

    client = service.client()
    client.view(SESSION)
    threading.Thread(target=show, args=(service,), daemon=True).start()
    handlers = [spawn("handler", "handler", name) for name in "ABC"]
    busy = spawn("worker", "worker")
    eventually(lambda: any(e["event"] == "turn-started" for e in client.ledger(SESSION)), 30, "the worker's turn")
    time.sleep(1.0)  # the middle of the turn: twenty words in
    begun = time.monotonic()
    for process in handlers:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        time.sleep(0.005)
    say("demo", f"A, B and C sent within {(time.monotonic() - begun) * 1000:.0f} ms")
    for process in (*handlers, busy):
        if process.wait(60):
            raise AssertionError(f"a caller ended with {process.returncode}")
    return client.ledger(SESSION)


def verdict(entries: list[dict[str, Any]], log: list[dict[str, Any]]) -> dict[str, Any]:
    keys = {e["ticket"]: e["key"].rpartition("-")[2] for e in entries if e["event"] == "taken"}
    names = {ticket: "worker" if key == "1" else key for ticket, key in keys.items()}
    closed = [e for e in entries if e["event"] == "turn-closed"]
    cut = [e for e in closed if "interrupt_to_closed_ms" in e]
    report = verify(entries)
    final = json.dumps(log[-1]["messages"])
    kept = all(f"Comment {name}" in final and f"the answer to {name}" in final for name in "ABC")
    return {
        "order": [names[e["ticket"]] for e in entries if e["event"] == "granted"],
        "inversions": report.inversions + report.misorders,
        "answers": sum(e["outcome"] == "completed" for e in closed) - 1,
        "preemptions": sum(e["event"] == "ended" and e["reason"] == "preempted" for e in entries),
        "interrupt_to_ack_ms": cut[0].get("interrupt_to_ack_ms") if cut else None,
        "interrupt_to_closed_ms": cut[0]["interrupt_to_closed_ms"] if cut else None,
        "worker_continued": "You were interrupted" in log[-1]["prompt"] and "count to four hundred" in final and kept,
    }


def good(found: dict[str, Any]) -> bool:
    return (
        found["order"] == ["worker", "A", "B", "C", "worker"]
        and found["inversions"] == 0
        and found["answers"] == 3
        and found["preemptions"] == 1
        and found["interrupt_to_ack_ms"] is not None
        and bool(found["worker_continued"])
    )


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="demo-") as place:
        redis, model = Redis(), Model()
        service = Sessiond(redis.url, Path(place) / "state", claude_env(model))
        try:
            entries = run(service)
            found = verdict(entries, [e for e in model.log() if e["tools"]])
        finally:
            service.close()
            model.close()
            redis.close()
    print(json.dumps(found), flush=True)
    return 0 if good(found) else 1


if __name__ == "__main__":
    if len(sys.argv) > 1:
        {"worker": worker, "handler": lambda name, url, key: handler(url, key, name)}[sys.argv[1]](*sys.argv[2:])
    else:
        sys.exit(main())
