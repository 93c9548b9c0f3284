"""`make compose-test`: run docker-compose.yml from a fresh clone, with stand-ins for the model and GitHub.

The run checks, in this order:

- the first start, and the isolation of the agent;
- a worker's long turn that a flurry preempts, with three replicas of which one is killed;
- Prometheus's numbers against the ledgers';
- a restart of each service, then down and up again;
- a checkout, backup, rotation of secrets, and upgrade, as the documentation describes them.

Every check reads the ledger, Prometheus, or the requests that GitHub's stand-in received.
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

import isolation  # noqa: E402
import maintenance  # noqa: E402
import observability  # noqa: E402
from stack import PROJECT, Stack, eventually, say  # noqa: E402

from sessiond.verify import verify  # noqa: E402
from support.ledger_checks import Entries  # noqa: E402

SERVICES = ("redis", "sessiond", "webhook", "handler", "poster", "worker", "proxy", "prometheus", "grafana")
TASK = '#tokens 4000 x1\n#pace 20ms\n#say I have counted.\\n{"outcome": "done", "note": "counted"}'


def first_start(stack: Stack) -> None:
    stack.up(1, build=True)
    say("up from a fresh clone, with no file edited")
    stack.begin()
    isolation.check_isolation(stack)
    say("the agent is isolated; only the proxy and Grafana publish a port, on loopback")


def preemption(stack: Stack) -> None:
    """Preempt the worker's turn with a flurry. Afterwards the worker continues and ends its task."""
    stack.up(3)
    say("three webhooks, three handlers")
    stack.assign(f"Count to four thousand.\n{TASK}")
    started = lambda: any(e["event"] == "turn-started" for e in stack.ledger())  # noqa: E731
    eventually(started, 60, "the worker's turn")
    say("the worker is in the middle of a long turn")
    begun_at = time.monotonic()
    stack.flurry("A", 18, lambda: [stack.kill_one("webhook"), stack.kill_one("handler")])
    say(f"18 comments, each answered once, {time.monotonic() - begun_at:.1f} s; statuses {sorted(set(stack.statuses))}")
    last_end = lambda: [e["reason"] for e in stack.ledger() if e["event"] == "ended" and e["kind"] == "worker"][-1]  # noqa: E731
    eventually(lambda: last_end() == "released", 60, "the worker has released its lease")
    ledger = stack.checked_ledger()
    order, report = grants(ledger), verify(ledger)
    tasks = [task["state"] for task in json.loads(stack.sessionctl("task", "list", "--json"))]
    print(",".join(order), flush=True)
    numbers = {"preemptions": report.preemptions, "inversions": report.inversions, "misorders": report.misorders}
    print(json.dumps({**numbers, "task": tasks}), flush=True)
    assert order[0] == order[-1] == "worker" and report.preemptions >= 1
    assert set(order) == {"worker", *(f"A{n}" for n in range(18))}
    assert tasks == ["done"]


def grants(ledger: Entries) -> list[str]:
    """Return the name of each granted ticket, in the order of the grants."""
    keys = {entry["ticket"]: str(entry["key"]) for entry in ledger if entry["event"] == "taken"}
    names = {ticket: key.removeprefix("IC_") if key.startswith("IC_") else "worker" for ticket, key in keys.items()}
    return [names[entry["ticket"]] for entry in ledger if entry["event"] == "granted"]


def restarts(stack: Stack) -> None:
    stack.flurry("B", 9, lambda: stack.up(1))
    say("scaled down to one replica during a flurry: 9 more comments, each answered once")
    for service in SERVICES:
        stack.compose("restart", service)
        stack.up(1)
        stack.flurry(f"restart-{service}-", 1)
        say(f"{service} restarted; a comment is answered")
    before = stack.checked_ledger()
    stack.compose("down")
    stack.up(2)
    stack.begin()
    after = stack.checked_ledger()
    assert after[: len(before)] == before
    stack.flurry("C", 3)
    say("down and up again: the ledger's entries are kept, and new ones follow")


def scenario(stack: Stack) -> None:
    first_start(stack)
    preemption(stack)
    observability.check_counts(stack)
    observability.print_durations(stack)
    observability.check_panels(stack)
    restarts(stack)
    maintenance.install_checkout(stack)
    maintenance.back_up_and_restore(stack)
    maintenance.rotate_secrets(stack)
    maintenance.upgrade(stack)
    report = verify(stack.checked_ledger())
    print(json.dumps({"entries": report.entries, "handoffs": report.handoffs, "order": "as taken",
                      "preemptions": report.preemptions, "inversions": report.inversions,
                      "misorders": report.misorders, "violations": report.violations}), flush=True)  # fmt: skip


def main() -> int:
    probe = subprocess.run(["docker", "compose", "version"], capture_output=True) if shutil.which("docker") else None
    if probe is None or probe.returncode or subprocess.run(["docker", "info"], capture_output=True).returncode:
        print("compose-test: skipped: `docker compose` does not answer; start a Docker engine with compose v2")
        return 0
    with tempfile.TemporaryDirectory(prefix="compose-test-") as place:
        stack = Stack(Path(place))
        say(f"project {PROJECT}")
        try:
            scenario(stack)
            return 0
        except AssertionError as error:
            say(f"FAILED: {error}")
            print(stack.compose("logs", "--no-color", "--tail", "40", check=False)[-12000:])
            return 1
        finally:
            stack.compose("down", "-v", "--remove-orphans", "-t", "5", check=False)


if __name__ == "__main__":
    sys.exit(main())
