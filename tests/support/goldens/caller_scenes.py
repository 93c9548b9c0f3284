"""Scenes of the handler, the poster and the worker."""

import json
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sessiond_common.jobs.queue import connect
from sessiond_worker.tasks.model import NewTask
from sessiond_worker.tasks.store import Tasks
from support.goldens.exchanges import Http
from support.goldens.files import Golden
from support.goldens.mask import Mask
from support.goldens.records import Records, masked_ledger, metrics_of
from support.goldens.services import LONG_TIMES, PROCESS_MODULES
from support.goldens.webhook_scenes import REPOSITORY, DeliverySender
from support.jobs.jobprocess import JobProcess
from support.servers import Github, Redis, Sessiond, Webhook, eventually, free_port, scripted_env
from support.webhook import payloads


class CallerServices:
    """All services on one Redis. `start` starts handlers, posters and workers."""

    def __init__(self, redis_server: Redis, place: Path, stack: ExitStack) -> None:
        self.place, self.stack, self.records = place, stack, Records(redis_server.url)
        times = {**LONG_TIMES, "claim_window": 20, "lease_ttl": 20}
        self.sessiond = Sessiond(redis_server.url, place / "sessiond", scripted_env(**times))
        self.github = Github()
        stack.callback(self.github.close)
        stack.callback(self.sessiond.close)
        self.github.thread(1, repo="Codertocat/Hello-World", pull=True)
        logs = {f"{name}_LOG_FORMAT": "json" for name in ("WEBHOOK", "HANDLER", "POSTER", "WORKER")}
        self.env = {
            "REDIS_URL": redis_server.url, "SESSIOND_URL": self.sessiond.url, "SESSIOND_LEASE_TTL": "20",
            "SESSIOND_KEY": self.sessiond.keys["handler"], "WEBHOOK_PROCESSES": "1", "WEBHOOK_TICKET_SECONDS": "30",
            "OUTBOX_DIR": str(place / "outbox"), "POSTER_PACE": "0.01", "RUN_TTL": "15", "SWEEP_SECONDS": "3600",
            "WORKER_SWEEP_SECONDS": "3600", "WORKER_CLAIM_SECONDS": "15", "WORKER_RETRY_SECONDS": "0.1", **logs,
        }  # fmt: skip
        self.webhook = Webhook(redis_server.url, place / "webhook", self.env)
        stack.callback(self.webhook.close)
        self.processes: dict[str, JobProcess] = {}
        self.ports: dict[str, int] = {}

    def start(self, name: str, **env: str) -> JobProcess:
        """Start a process with a metrics port. It takes jobs when this returns."""
        kind = name.partition("-")[0]
        self.ports[name] = free_port()
        made = JobProcess(
            PROCESS_MODULES[kind], self.place / name, {**self.env, "METRICS_PORT": str(self.ports[name]), **env}
        )
        self.stack.callback(made.close)
        self.processes[name] = made
        return made

    def metrics(self, name: str) -> Any:
        url = f"http://127.0.0.1:{self.ports[name]}"
        text = Http(url, {}, Mask()).ask("GET", "/metrics", role=None).data.decode()
        return metrics_of(text, lambda sample, labels: sample.endswith("_total"))

    def demand(self, key: str) -> Any:
        return json.loads(self.records.redis.get(f"webhook:demand:{key}") or "{}")

    def wait_until(self, check: Callable[[], Any]) -> Any:
        return eventually(check, 60, lambda: "".join(p.log()[-1500:] for p in self.processes.values()))

    def wait_for_states(self, **wanted: str) -> None:
        """Wait until each demand has its state."""
        self.wait_until(lambda: all(self.demand(key).get("state") == state for key, state in wanted.items()))

    def wait_until_free(self, session: str) -> None:
        """Wait until the session has no holder and an empty queue."""
        client = self.sessiond.client()
        self.wait_until(lambda: not (view := client.view(session))["queue"] and view["holder"] is None)


def answer_comments(services: CallerServices, golden: Golden, mask: Mask) -> None:
    """Comments get a note, an answer and a post: first on GitHub, then in the outbox."""
    send = DeliverySender(services.webhook, mask)
    promise = '#lines It will be done.|{"promise": {"title": "Mend it", "instructions": "Mend the parser."}}'
    bodies = {"IC_1": "#say an answer", "IC_2": "#fail API Error: overloaded", "IC_3": promise, "IC_4": "#say never"}
    for key, body in bodies.items():
        send(key, "issue_comment", payloads.comment(key, f"@helper what is {key}?\n{body}"))
    poster = services.start("poster", **services.github.env())
    services.wait_until(lambda: all((services.demand(key)["note"] or {}).get("shown") for key in bodies))
    send("gone", "issue_comment", payloads.comment("IC_4", action="deleted"))
    services.wait_until(lambda: not services.records.redis.exists("webhook:threads"))
    services.wait_until(lambda: not list(services.records.redis.scan_iter("rq:job:posts*")))
    golden.put("seen.redis", services.records.dump(mask, "webhook:*"))
    assert poster.stop() == 0
    services.start("handler")
    services.wait_for_states(IC_1="answered", IC_2="failed", IC_3="answered", IC_4="refused")
    services.wait_until(lambda: not list(services.records.redis.scan_iter("rq:job:demands*")))
    golden.put("answered.redis", services.records.dump(mask, "webhook:*", "worker:*", "rq:queue:*", "rq:job:*"))
    second = services.start("poster-2", **services.github.env())
    services.wait_for_states(IC_1="posted", IC_3="posted")
    services.wait_until(lambda: not services.records.redis.exists("webhook:threads"))
    services.wait_until(lambda: not list(services.records.redis.scan_iter("rq:job:posts*")))
    golden.put("posted.redis", services.records.dump(mask, "webhook:*"))
    golden.put("poster.metrics", services.metrics("poster-2"))
    assert second.stop() == 0
    golden.put("github", [masked_github_write(mask, one) for one in services.github.log()])
    calls = {f"{one['method']} {re.sub('[0-9]{2,}', '<id>', one['path'])}" for one in services.github.requests()}
    golden.put("github.calls", sorted(mask.text(re.sub("since=[^&]*", "since=<time>", call)) for call in calls))
    for key, event, payload in (
        ("PRRC_1", "pull_request_review_comment", payloads.review_comment(body="@helper why?\n#say because")),
        ("PRR_1", "pull_request_review", payloads.review(body="@helper and?\n#say so")),
    ):
        send(key, event, payload)
        services.wait_for_states(**{key: "answered"})
        services.wait_until_free(REPOSITORY)
    third = services.start("poster-3")
    services.wait_for_states(PRRC_1="posted", PRR_1="posted")
    services.wait_until(lambda: not services.records.redis.exists("webhook:threads"))
    assert third.stop() == 0
    golden.put("outbox.redis", services.records.dump(mask, "webhook:demand:PRR*"))
    files = sorted((services.place / "outbox").rglob("*.md"))
    golden.put("outbox", {str(f.relative_to(services.place / "outbox")): f.read_text().splitlines() for f in files})
    for fact in send.facts:
        if fact["delivery"] in ("PRRC_1", "PRR_1"):  # the running handler may have started before the 202
            assert fact["body"]["state"] in ("open", "answering")
            fact["body"]["state"] = "<open or answering>"
    golden.put("callers.http", send.facts)


def masked_github_write(mask: Mask, one: dict[str, Any]) -> Any:
    """Mask a write to GitHub. Of its text, only the marker and the number of lines stay."""
    *_, marker = one["body"].splitlines()
    kept = {name: one[name] for name in ("did", "kind", "thread", "by")}
    return {**mask.value(kept), "marker": marker, "lines": one["body"].count("\n") + 1}


def run_tasks(services: CallerServices, golden: Golden, mask: Mask) -> None:
    """Run tasks: one is preempted and continues, and the others reach every end state."""
    session = "octo/tasks"
    services.records.redis.delete("worker:open")  # so that the worker does not run the promised task
    for job in services.records.redis.lrange("rq:queue:tasks", 0, -1):
        services.records.redis.delete(f"rq:job:{job}")
    services.records.redis.delete("rq:queue:tasks")
    tasks = Tasks(connect(services.env["REDIS_URL"]))
    services.start("worker", SESSIOND_KEY=services.sessiond.keys["worker"])

    def script(*lines: str) -> str:
        path = services.place / f"script-{len(list(services.place.glob('script-*')))}"
        path.write_text("\n".join(lines) + "\n")
        return f"Do it.\n#script {path}"

    def report(outcome: str, note: str = "", more: str = "") -> str:
        return f"say={json.dumps({'outcome': outcome, 'note': note})}{more}"

    def add(key: str, *lines: str) -> str:
        return tasks.add(NewTask(key=key, session=session, title="A task", instructions=script(*lines))).id

    def wait_for_end(task: str, state: str) -> None:
        services.wait_until(lambda: (t := tasks.get(task)).state == state and t.ticket is None)
        services.wait_until(lambda: not list(services.records.redis.scan_iter("rq:job:tasks*")))

    preempted = add("cut", report("more", "half", ";tokens=6000;pace=10ms"), report("done", "all of it"))
    client = services.sessiond.client()

    def started_turns() -> int:
        return sum(e["event"] == "turn-started" for e in services.records.ledger(session))

    services.wait_until(lambda: started_turns() == 1)
    golden.put("running.redis", services.records.dump(mask, "worker:*"))
    lines = [report("more", "half"), report("done", "all of it")]
    (services.place / "script-0").write_text("\n".join(lines) + "\n")
    client.take(session, kind="handler", key="person")
    services.wait_until(lambda: client.view(session)["draining"] is None and client.view(session)["turn"] is None)
    with client.lease(session, kind="handler", key="person", holder="person") as lease:
        assert lease.turn("#say hello").result().completed
        services.wait_until(lambda: client.view(session)["queue"][0]["present"])
    wait_for_end(preempted, "done")
    for key, outcome in (("nothing", "nothing-to-do"), ("stuck", "stuck")):
        wait_for_end(add(key, report(outcome, "why")), outcome)
    wait_for_end(add("fails", "fail=API Error: overloaded"), "stuck")
    before = started_turns()
    cancelled_task = add("cancelled", report("done", "", ";tokens=6000;pace=10ms"))
    services.wait_until(lambda: started_turns() == before + 1)
    tasks.cancel(cancelled_task, "ann")
    wait_for_end(cancelled_task, "cancelled")
    golden.put("tasks.redis", services.records.dump(mask, "worker:*"))
    # When a run waits differs each time.
    entries = [e for e in services.records.ledger(session) if e["event"] != "present"]
    golden.put("tasks.ledger", masked_ledger(mask, entries))
