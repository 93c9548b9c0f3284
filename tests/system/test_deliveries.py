"""Many deliveries, repeated and out of order, to three webhooks and three handlers; one of each is killed meanwhile.

The quick form sends 90 deliveries, FULL=1 sends 300.
"""

import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sessiond.verify import verify
from sessiond_common.jobs.queue import Jobs, connect
from sessiond_webhook.demands.machine import ENDED, Demand, DemandState
from sessiond_webhook.demands.store import Demands
from sessiond_worker.tasks.model import NewTask
from sessiond_worker.tasks.store import Tasks
from support.jobs.jobprocess import JobProcess
from support.ledger_checks import check_grant_order
from support.servers import Github, Redis, Sessiond, Webhook, eventually, scripted_env
from support.size import FULL
from support.webhook import payloads

DELIVERIES = 300 if FULL else 90
COMMENTS = DELIVERIES * 2 // 3
BUSY, QUIET = "codertocat/hello-world", "codertocat/quiet"
TIMES = {"lease_ttl": 3.0, "claim_window": 1.0, "head_wait": 1.0, "poll_grace": 0.5, "drain_deadline": 3.0}
LONG = "Count.\n#tokens 3000\n#pace 10ms"


class Services:
    """Three webhooks, three handlers, a poster that writes to GitHub, and a worker."""

    def __init__(self, redis: Redis, service: Sessiond, github: Github, place: Path, stack: ExitStack) -> None:
        self.service, self.github = service, github
        github.thread(1, repo="Codertocat/Hello-World", pull=True)
        github.thread(1, repo="Codertocat/Quiet", pull=True)
        env = {
            "REDIS_URL": redis.url, "SESSIOND_URL": service.url, "SESSIOND_LEASE_TTL": str(TIMES["lease_ttl"]),
            **github.env(), "POSTER_PACE": "0.1",
        }  # fmt: skip
        handler = {**env, "SESSIOND_KEY": service.keys["handler"]}
        ingress = {**handler, "WEBHOOK_PROCESSES": "1", "SWEEP_SECONDS": "0.5"}
        self.webhooks = [Webhook(redis.url, place / f"webhook-{n}", ingress) for n in range(3)]
        self.handlers = [JobProcess("sessiond_webhook.handler", place / f"handler-{n}", handler) for n in range(3)]
        self.others = [
            JobProcess("sessiond_webhook.poster", place / "poster", env),
            JobProcess("sessiond_worker", place / "worker", {**env, "SESSIOND_KEY": service.keys["worker"]}),
        ]
        for one in (*self.webhooks, *self.handlers, *self.others):
            stack.callback(one.close)
        connection = connect(redis.url)
        stack.callback(connection.close)
        self.demands = Demands(connection, Jobs(connection))
        self.tasks = Tasks(connection)


def comment(number: int, *, repo: str = "Hello-World", action: str = "created") -> dict[str, Any]:
    key = f"IC_{repo}_{number}"
    made = payloads.comment(
        key, f"@helper say {number}.\n#tokens 20\n#pace 5ms\n#say this answers {key};", action=action
    )
    made["repository"]["full_name"] = f"Codertocat/{repo}"
    made["repository"]["name"] = repo
    return made


def plan(chance: random.Random) -> list[tuple[str, dict[str, Any], str]]:
    """Return (event, payload, delivery id) in the order of sending.

    Every comment is sent. Some are sent twice, half of these with the same delivery id. Some neighbours are swapped.
    """
    sent = [("issue_comment", comment(n), f"delivery-{n}") for n in range(COMMENTS)]
    again = chance.sample(range(COMMENTS), DELIVERIES - COMMENTS)
    for number in again:
        same = chance.random() < 0.5
        place = min(len(sent), sent.index(sent[number]) + chance.randrange(1, 12))
        sent.insert(place, ("issue_comment", comment(number), f"delivery-{number}" if same else f"again-{number}"))
    for at in range(0, len(sent) - 3, 5):
        window = sent[at : at + 3]
        chance.shuffle(window)
        sent[at : at + 3] = window
    return sent


def deliver(services: Services, sent: list[tuple[str, dict[str, Any], str]], chance: random.Random) -> None:
    """Send one delivery after another, as GitHub does, each until one of the webhooks answers with 2xx."""
    for event, payload, delivery in sent:
        ends = time.monotonic() + 30
        while True:
            try:
                if services.webhooks[chance.randrange(3)].post(event, payload, delivery).status in (202, 204):
                    break
            except Exception:  # the webhook is being killed: any connection error is possible
                time.sleep(0.05)
            assert time.monotonic() < ends, f"{delivery} is not accepted"


def test_each_comment_is_answered_once_and_in_order_when_processes_are_killed(
    redis_server: Redis, sessiond: Callable[..., Sessiond], tmp_path: Path, figures: Callable[[str], None]
) -> None:
    chance = random.Random(20)
    with ExitStack() as stack:
        github = Github()
        stack.callback(github.close)
        services = Services(redis_server, sessiond(scripted_env(**TIMES)), github, tmp_path, stack)
        task = services.tasks.add(NewTask("long", BUSY, "Count", LONG))
        started = lambda: any(e["event"] == "turn-started" for e in services.service.ledger(BUSY))  # noqa: E731
        eventually(started, 30, "the worker's turn")
        sent, began = plan(chance), time.monotonic()
        sender = threading.Thread(target=deliver, args=(services, sent, chance))
        sender.start()
        eventually(lambda: count_ended(services, BUSY) >= COMMENTS * 0.2, 120, "a fifth of the answers")
        services.handlers[0].kill9()
        services.webhooks[0].process.send_signal(signal.SIGKILL)  # gunicorn's master; its worker ends with it
        quiet_sent_at = time.monotonic()
        services.webhooks[1].post("issue_comment", comment(0, repo="Quiet"), "quiet")
        eventually(lambda: count_ended(services, QUIET) == 1, 60, "the other session's answer")
        quiet, waiting = time.monotonic() - quiet_sent_at, len(services.demands.unanswered(BUSY))
        services.handlers[0].start()
        sender.join(120)
        assert not sender.is_alive()
        everything = [f"IC_Hello-World_{n}" for n in range(COMMENTS)]
        try:
            eventually(lambda: count_ended(services, BUSY) >= COMMENTS, 200, "every answer")
        except AssertionError as error:
            raise AssertionError(unfinished(services, everything)) from error
        seconds = time.monotonic() - began
        services.tasks.cancel(task.id)
        found = [found for key in everything if (found := services.demands.get(key)) is not None]
        assert [d.key for d in found if d.state is not DemandState.POSTED] == []
        check_replies(services, found)
        ledger = services.service.ledger(BUSY)
        report = verify(ledger)
        assert (report.inversions, report.misorders) == (0, 0)
        assert report.violations == []
        assert check_grant_order(ledger) == {one.key for one in found}
    figures(
        f"{DELIVERIES} deliveries, {COMMENTS} comments answered in {seconds:.1f} s; the other session's answer took "
        f"{quiet:.1f} s with {waiting} waiting"
    )
    assert waiting > 0, "the other session's comment waited behind the flurry"


def count_ended(services: Services, session: str) -> int:
    keys = services.demands.redis.scan_iter(f"webhook:demand:IC_{'Quiet' if session == QUIET else 'Hello-World'}_*")
    records = [services.demands.get(key.decode().partition("demand:")[2]) for key in keys]
    return sum(one is not None and one.state in ENDED for one in records)


def unfinished(services: Services, keys: list[str]) -> str:
    return str(
        [(key, d and d.state) for key in keys if (d := services.demands.get(key)) is None or d.state not in ENDED]
    )


def check_replies(services: Services, found: list[Demand]) -> None:
    """Check that every comment has exactly one note at GitHub, and that its last text is the answer."""
    last: dict[int, str] = {}
    for write in services.github.log():
        last[write["id"]] = write["body"]
    bodies = list(last.values())
    for one in found:
        assert sum(f"this answers {one.key};" in body for body in bodies) == 1, one.key
    assert len([body for body in bodies if "Hello-World" in body]) == COMMENTS
