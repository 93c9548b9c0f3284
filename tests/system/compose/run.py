"""`make compose-test`: the containers of docker-compose.yml from a fresh clone, with a model and a GitHub beside them.

Up; walls; a worker in a long turn, preempted by a flurry through the proxy at three replicas with one killed in the
middle; Prometheus's own numbers against the ledger's; every service restarted in turn; down and up again; back-up,
rotation of keys and upgrade as docs/operate/maintain.md has them. What is said is read from the ledger, from
Prometheus, and from what GitHub was asked to post.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TESTS)]

import seen  # noqa: E402
import upkeep  # noqa: E402
import walls  # noqa: E402
from stack import PROJECT, Entries, Stack, eventually, say  # noqa: E402

from sessiond.verify import verify  # noqa: E402

SERVICES = ("redis", "sessiond", "webhook", "handler", "poster", "worker", "proxy", "prometheus", "grafana")
TASK = '#tokens 4000 x1\n#pace 20ms\n#say I have counted.\\n{"outcome": "done", "note": "counted"}'


def fresh(stack: Stack) -> None:
    stack.up(1, build=True)
    say("up on a fresh clone, nothing edited")
    stack.begin()
    walls.stand(stack)
    say("the agent's walls stand; only proxy and Grafana are published, on loopback")


def preempted(stack: Stack) -> None:
    """The worker's turn is cut by a flurry; afterwards it goes on, and ends."""
    stack.up(3)
    say("three webhooks, three handlers")
    stack.assign(f"Count to four thousand.\n{TASK}")
    begun = lambda: any(e["event"] == "turn-started" for e in stack.ledger())  # noqa: E731
    eventually(begun, 60, "the worker's turn")
    say("the worker is in the middle of a long turn")
    began = time.monotonic()
    stack.flurry("A", 18, lambda: [stack.kill_one("webhook"), stack.kill_one("handler")])
    say(f"18 comments, each answered once, {time.monotonic() - began:.1f} s; statuses {sorted(set(stack.statuses))}")
    over = lambda: [e["reason"] for e in stack.ledger() if e["event"] == "ended" and e["kind"] == "worker"][-1]  # noqa: E731
    eventually(lambda: over() == "released", 60, "the worker has ended")
    ledger = stack.ordered()
    order, found = grants(ledger), verify(ledger)
    tasks = [task["state"] for task in json.loads(stack.sessionctl("task", "list", "--json"))]
    print(",".join(order), flush=True)
    numbers = {"preemptions": found.preemptions, "inversions": found.inversions, "misorders": found.misorders}
    print(json.dumps({**numbers, "task": tasks}), flush=True)
    assert order[0] == order[-1] == "worker" and found.preemptions >= 1
    assert set(order) == {"worker", *(f"A{n}" for n in range(18))}
    assert tasks == ["done"]


def grants(ledger: Entries) -> list[str]:
    """Who was granted the lock, one after another."""
    keys = {entry["ticket"]: str(entry["key"]) for entry in ledger if entry["event"] == "taken"}
    names = {ticket: key.removeprefix("IC_") if key.startswith("IC_") else "worker" for ticket, key in keys.items()}
    return [names[entry["ticket"]] for entry in ledger if entry["event"] == "granted"]


def restarted(stack: Stack) -> None:
    stack.flurry("B", 9, lambda: stack.up(1))
    say("scaled down to one in the middle of a flurry: 9 more, each answered once")
    for service in SERVICES:
        stack.compose("restart", service)
        stack.up(1)
        stack.flurry(f"restart-{service}-", 1)
        say(f"{service} restarted, a comment answered")
    before = stack.ordered()
    stack.compose("down")
    stack.up(2)
    stack.begin()
    after = stack.ordered()
    assert after[: len(before)] == before
    stack.flurry("C", 3)
    say("down, up again: the ledger is the same, and longer")


def story(stack: Stack) -> None:
    fresh(stack)
    preempted(stack)
    seen.agree(stack)
    seen.times(stack)
    seen.panels(stack)
    restarted(stack)
    upkeep.checkout(stack)
    upkeep.back_up_and_restore(stack)
    upkeep.rotate(stack)
    upkeep.upgrade(stack)
    found = verify(stack.ordered())
    print(json.dumps({"entries": found.entries, "handoffs": found.handoffs, "order": "as taken",
                      "preemptions": found.preemptions, "inversions": found.inversions,
                      "misorders": found.misorders, "violations": found.violations}), flush=True)  # fmt: skip


def main() -> int:
    probe = subprocess.run(["docker", "compose", "version"], capture_output=True) if shutil.which("docker") else None
    if probe is None or probe.returncode or subprocess.run(["docker", "info"], capture_output=True).returncode:
        print("compose-test: skipped, no engine with `docker compose` answers here")
        return 0
    with tempfile.TemporaryDirectory(prefix="compose-test-") as place:
        stack = Stack(Path(place))
        say(f"project {PROJECT}")
        try:
            story(stack)
            return 0
        except AssertionError as error:
            say(f"FAILED: {error}")
            print(stack.compose("logs", "--no-color", "--tail", "40", check=False)[-12000:])
            return 1
        finally:
            stack.compose("down", "-v", "--remove-orphans", "-t", "5", check=False)


if __name__ == "__main__":
    sys.exit(main())
