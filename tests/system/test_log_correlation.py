"""One search for a comment's id finds all its log lines in every process; no log contains texts or secrets."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sessiond_common.jobs.queue import Jobs, connect
from sessiond_webhook.demands.machine import DemandState
from sessiond_webhook.demands.store import Demands
from sessiond_worker.tasks.model import NewTask
from sessiond_worker.tasks.store import Tasks
from support.jobs.jobprocess import JobProcess
from support.servers import Github, Redis, Sessiond, Webhook, eventually, scripted_env
from support.webhook import payloads

SESSION, KEY, DELIVERY = "codertocat/hello-world", "IC_kwDOlogged", "delivery-of-the-comment"
ASKED, ANSWERED, TASK, NOTE = "quokka", "pademelon", "bettong", "wallaby"
"""Words that appear only in the person's, the agent's and the task's texts."""
Line = dict[str, Any]


class Services:
    """One process of each service, all with JSON logs."""

    def __init__(self, redis: Redis, service: Sessiond, github: Github, place: Path, stack: ExitStack) -> None:
        self.service, self.github = service, github
        github.thread(1, repo="Codertocat/Hello-World", pull=True)
        env = {
            "REDIS_URL": redis.url, "SESSIOND_URL": service.url,
            **github.env(), "POSTER_PACE": "0.1", "WEBHOOK_TICKET_SECONDS": "30",
            **{f"{name}_LOG_FORMAT": "json" for name in ("WEBHOOK", "HANDLER", "POSTER", "WORKER")},
        }  # fmt: skip
        handler = {**env, "SESSIOND_KEY": service.keys["handler"]}
        self.webhook = Webhook(redis.url, place / "webhook", handler)
        self.jobs = {
            "handler": JobProcess("sessiond_webhook.handler", place / "handler", handler),
            "poster": JobProcess("sessiond_webhook.poster", place / "poster", env),
            "worker": JobProcess("sessiond_worker", place / "worker", {**env, "SESSIOND_KEY": service.keys["worker"]}),
        }
        for one in (self.webhook, *self.jobs.values()):
            stack.callback(one.close)
        connection = connect(redis.url)
        stack.callback(connection.close)
        self.demands, self.tasks = Demands(connection, Jobs(connection)), Tasks(connection)

    def logs(self) -> dict[str, str]:
        """Return the whole log of each service."""
        logs = {"webhook": self.webhook.log_text(0), "sessiond": self.service.log_bytes().decode()}
        return logs | {name: process.log() for name, process in self.jobs.items()}


def test_one_search_finds_all_lines_of_a_comment(
    redis_server: Redis, sessiond: Callable[..., Sessiond], github: Github, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        service = sessiond({**scripted_env(), "SESSIOND_LOG_FORMAT": "json"})
        services = Services(redis_server, service, github, tmp_path, stack)
        text = f"Count every {TASK}.\n#tokens 6000\n#pace 10ms\n#say {NOTE}"
        task = services.tasks.add(NewTask("count", SESSION, f"A {TASK}", text))
        count = lambda event: sum(e["event"] == event for e in service.client().ledger(SESSION))  # noqa: E731
        eventually(lambda: count("turn-started") == 1, 60, "the worker's turn")
        body = f"@helper where is the {ASKED}?\n#say It met a {ANSWERED}."
        assert services.webhook.post("issue_comment", payloads.comment(KEY, body), DELIVERY).status == 202
        posted = lambda: (found := services.demands.get(KEY)) is not None and found.state is DemandState.POSTED  # noqa: E731
        eventually(posted, 60, "the posted answer")
        eventually(lambda: count("granted") == 3, 60, "the worker's second grant")
        services.tasks.cancel(task.id)
        eventually(lambda: count("ticket-ended") == 2, 60, "the task's end")
        assert any(ANSWERED in write["body"] for write in github.log())
        with service.client().lease(SESSION, kind="handler") as lease:
            secrets = [lease.secret, *service.keys.values(), services.webhook.SECRET, github.TOKEN]
        logs = services.logs()
        parsed = {name: parse_lines(log) for name, log in logs.items()}
        check_comment(parsed, services.demands.get(KEY).ticket)  # type: ignore[union-attr]
        check_preemption(parsed, task.id)
        for name, log in logs.items():
            found = [word for word in (ASKED, ANSWERED, TASK, NOTE, *secrets) if word in log]
            assert found == [], f"{name}'s log"


def parse_lines(log: str) -> list[Line]:
    """Parse a log. Every line must be one JSON object."""
    return [json.loads(line) for line in log.splitlines()]


def check_comment(logs: dict[str, list[Line]], ticket: str | None) -> None:
    """Check that the lines with the comment's id show each step, with the same session, ticket and fence everywhere."""
    found = {name: [line for line in log if KEY in json.dumps(line)] for name, log in logs.items()}
    (delivery,) = [line for line in found["webhook"] if line["event"] == "delivery"]
    assert (delivery["delivery"], delivery["outcome"], delivery["demand"]) == (DELIVERY, "accepted", KEY)
    steps = {line["event"]: line for line in found["sessiond"]}
    assert list(steps) == [
        "taken", "granted", "turn-accepted", "turn-started", "turn-closed", "ended", "ticket-ended",
    ]  # fmt: skip
    fence = steps["granted"]["fence"]
    assert [line["event"] for line in found["handler"]] == ["taken up", "answering", "answered"]
    posted = [line for line in found["poster"] if line["event"] == "posted"][-1]
    assert (posted["state"], posted["fence"]) == ("posted", fence) and posted["url"].startswith("http")
    every = sorted((line for lines in found.values() for line in lines), key=lambda line: str(line["timestamp"]))
    assert {line["session"] for line in every} == {SESSION}
    # A handler may start before the ingress has recorded the ticket. That line has no ticket.
    assert ticket is not None and {line.get("ticket") for line in every} - {None} == {ticket}
    assert all("ticket" in line for line in every if line["event"] != "taken up")
    held = ["granted", "turn-accepted", "turn-started", "turn-closed", "ended", "answering", "answered"]
    assert {line["fence"] for line in every if line["event"] in held} == {fence}
    order = [line["event"] for line in every]
    for before, after in (("taken", "granted"), ("granted", "answering"), ("answering", "turn-closed"),
                          ("turn-closed", "answered"), ("answered", "ended")):  # fmt: skip
        assert order.index(before) < order.index(after), order


def check_preemption(logs: dict[str, list[Line]], task: str) -> None:
    """Check that the lines of the task show its preemption, its second grant and its end."""
    events = [line["event"] for line in logs["sessiond"] if line.get("key") == task]
    cut = ["ended", "draining", "interrupt", "back", "turn-closed", "drained", "granted"]
    assert sorted(events[events.index("ended") : events.index("drained")]) == sorted(cut[:-2]), events
    assert events.count("granted") == 2 and "ticket-ended" in events, events
    (preempted,) = [line for line in logs["sessiond"] if line["event"] == "ended" and line.get("reason") == "preempted"]
    assert preempted["key"] == task
    assert any(line.get("fence") == preempted["fence"] for line in logs["worker"])
