"""`make demo`: three review comments preempt a worker; each is answered, and the worker continues.

The worker runs a long turn on an assigned issue. Three signed review comments arrive within 20 ms at two webhook
processes. The claude binary is the real one. The model and GitHub are stand-ins on loopback. The deliveries are
GitHub's own examples with other texts.

The last line of the output is one JSON object, with values from the ledger, the model's log and the posted comments.
The exit status is 1 if they are not as expected.
"""

import json
import os
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS)]

from sessiond.verify import verify  # noqa: E402
from support.jobs.jobprocess import JobProcess  # noqa: E402
from support.servers import Github, Model, Redis, Sessiond, Webhook, claude_env, eventually  # noqa: E402
from support.webhook import payloads  # noqa: E402

REPO, NUMBER = "Codertocat/Hello-World", 2
SESSION = REPO.lower()
NAMES = "ABC"
STARTED = time.time()
ISSUE = (
    "Count to four hundred.\n#tokens 400 x1\n#pace 50ms\n"
    '#say I have counted to four hundred.\\n{"outcome": "done", "note": "counted"}'
)


def say(who: str, what: str) -> None:
    print(f"{time.time() - STARTED:7.3f}  {who:<8} {what}", flush=True)


class DemoServices:
    """Redis, model, GitHub, sessiond, two webhooks, two handlers, a poster and a worker, each in its own process."""

    def __init__(self, place: Path, stack: ExitStack) -> None:
        self.redis, self.model, self.github = Redis(), Model(), Github()
        for server in (self.redis, self.model, self.github):
            stack.callback(server.close)
        self.github.thread(NUMBER, repo=REPO, pull=True)
        self.service = Sessiond(self.redis.url, place / "sessiond", claude_env(self.model))
        stack.callback(self.service.close)
        self.env = {"REDIS_URL": self.redis.url, "SESSIOND_URL": self.service.url, **self.github.env()}
        handler = {**self.env, "SESSIOND_KEY": self.service.keys["handler"]}
        ingress = {**handler, "WEBHOOK_PROCESSES": "1"}
        self.webhooks = [Webhook(self.redis.url, place / f"webhook-{n}", ingress) for n in (1, 2)]
        for webhook in self.webhooks:
            stack.callback(webhook.close)
        for name, module, env in (
            ("handler-1", "sessiond_webhook.handler", handler),
            ("handler-2", "sessiond_webhook.handler", handler),
            ("poster", "sessiond_webhook.poster", self.env),
            ("worker", "sessiond_worker", {**self.env, "SESSIOND_KEY": self.service.keys["worker"]}),
        ):
            stack.callback(JobProcess(module, place / name, env).close)

    def warm_up(self) -> None:
        """Send edited comments that mention nobody, so that both webhooks have answered deliveries before."""
        for n in range(6):
            edited = payloads.comment(f"IC_{n}", "no mention", action="edited")
            self.webhooks[n % 2].post("issue_comment", edited, f"warm-up-{n}")

    def assign(self) -> None:
        """Assign the issue that becomes the worker's task."""
        payload = payloads.load("issues.assigned")
        payload["issue"] |= {"body": ISSUE, "title": "Count"}
        payload["assignee"] |= {"id": 4711, "login": "helper[bot]", "type": "Bot"}
        answer = self.webhooks[0].post("issues", payload, "the-issue")
        say("GitHub", f"assigns an issue: {answer.status}")

    def comment(self, name: str) -> dict[str, Any]:
        """Add a review comment to GitHub. Returns its delivery."""
        body = f"@helper Comment {name} by a person: what is this line for?\n#say the answer to {name}"
        known = self.github.comment(NUMBER, body, "review", repo=REPO)
        return payloads.review_comment(f"PRRC_{name}", body, comment__id=known)  # type: ignore[no-any-return]


def show(services: DemoServices) -> None:
    """Print the ledger's entries as they are appended."""
    shown = {"taken", "ended", "draining", "drained", "granted", "interrupt", "turn-closed", "agent-starting"}
    for entry in services.service.client("viewer").follow_ledger(SESSION):
        if entry["event"] in shown:
            rest = {k: entry[k] for k in ("kind", "key", "reason", "why", "how", "outcome") if entry.get(k)}
            say("ledger", f"{entry['event']} {' '.join(f'{k}={v}' for k, v in rest.items())}")


def flurry(services: DemoServices) -> None:
    """Send A, B and C to the two webhooks alternately, within 20 ms."""
    deliveries = [(name, services.comment(name), services.webhooks[n % 2]) for n, name in enumerate(NAMES)]
    statuses: dict[str, int] = {}

    def send(name: str, payload: dict[str, Any], webhook: Webhook) -> None:
        statuses[name] = webhook.post("pull_request_review_comment", payload, f"delivery-{name}").status

    threads = [threading.Thread(target=send, args=one) for one in deliveries]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
        time.sleep(0.0095)
    say("GitHub", f"sends A, B and C within {(time.monotonic() - begun - 0.0095) * 1000:.0f} ms")
    for thread in threads:
        thread.join()
    say("webhook", f"answers {statuses}")


def run(services: DemoServices) -> list[dict[str, Any]]:
    client = services.service.client()
    threading.Thread(target=show, args=(services,), daemon=True).start()
    services.warm_up()
    services.assign()
    started = lambda: any(e["event"] == "turn-started" for e in client.ledger(SESSION))  # noqa: E731
    eventually(started, 30, "the worker's turn")
    time.sleep(1.0)  # the middle of the turn, after twenty words
    flurry(services)
    eventually(lambda: len(replies(services)) == 3, 60, "three replies")
    for name, body in replies(services).items():
        say("poster", f"posts to {name}: {body.splitlines()[0]}")

    def done() -> bool:
        ended = [e for e in client.ledger(SESSION) if e["event"] == "ended" and e["kind"] == "worker"]
        return bool(ended) and ended[-1]["reason"] == "released"

    eventually(done, 60, "the end of the worker's task")
    return client.ledger(SESSION)


def replies(services: DemoServices) -> dict[str, str]:
    """Return the last text of each posted comment, by the comment that it answers."""
    last = {write["id"]: write["body"] for write in services.github.log()}
    return {name: body for name in NAMES for body in last.values() if f"the answer to {name}" in body}


def summarize(services: DemoServices, entries: list[dict[str, Any]]) -> dict[str, Any]:
    keys = {e["ticket"]: e["key"] for e in entries if e["event"] == "taken"}
    names = {ticket: key.rpartition("_")[2] if key.startswith("PRRC") else "worker" for ticket, key in keys.items()}
    asked = {e["turn"]: e["key"] for e in entries if e["event"] == "turn-accepted"}
    closed = [e for e in entries if e["event"] == "turn-closed"]
    cut = [e for e in closed if "interrupt_to_closed_ms" in e]
    log = [e for e in services.model.log() if e["tools"]]
    final = json.dumps(log[-1]["messages"])
    kept = all(f"Comment {name}" in final and f"the answer to {name}" in final for name in NAMES)
    report = verify(entries)
    threads = {write["id"] for write in services.github.log()}
    return {
        "order": [names[e["ticket"]] for e in entries if e["event"] == "granted"],
        "inversions": report.inversions + report.misorders,
        "answers": sum(e["outcome"] == "completed" and "/answer/" in (asked[e["turn"]] or "") for e in closed),
        "replies": len(replies(services)) if len(threads) == 3 else -1,
        "preemptions": sum(e["event"] == "ended" and e["reason"] == "preempted" for e in entries),
        "interrupt_to_ack_ms": cut[0].get("interrupt_to_ack_ms") if cut else None,
        "interrupt_to_closed_ms": cut[0]["interrupt_to_closed_ms"] if cut else None,
        "worker_continued": "interrupted" in log[-1]["prompt"] and "Count to four hundred" in final and kept,
    }


def as_expected(found: dict[str, Any]) -> bool:
    return (
        found["order"] == ["worker", *NAMES, "worker"]
        and found["inversions"] == 0
        and found["answers"] == found["replies"] == 3
        and found["preemptions"] == 1
        and found["interrupt_to_ack_ms"] is not None
        and bool(found["worker_continued"])
    )


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="demo-") as place, ExitStack() as stack:
        services = DemoServices(Path(place), stack)
        try:
            found = summarize(services, run(services))
        except AssertionError:
            for log in Path(place).rglob("*.log"):
                print(f"---- {log.name}\n{log.read_text(errors='replace')[-4000:]}", file=sys.stderr)
            raise
    print(json.dumps(found), flush=True)
    return 0 if as_expected(found) else 1


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
