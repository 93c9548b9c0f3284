"""The services' outward behaviour, compared with recorded files.

Covered: HTTP answers, server-sent events, ledger entries, Redis records, metrics, log fields, commands, environment
variables. `RECORD_GOLDENS=1 pytest tests/system/test_goldens.py` records the files in `goldens/` anew.
"""

import contextlib
import faulthandler
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import urllib3

from sessiond import client as client_module
from sessiond import problems as sessiond_problems
from sessiond import settings as sessiond_settings
from sessiond.http import openapi
from sessiond_common import fault_points
from sessiond_common.env import SettingsError, load
from sessiond_common.jobs.queue import connect
from sessiond_common.metrics.settings import read_metrics
from sessiond_ops import sessionctl, up
from sessiond_webhook.handler import settings as handler_settings
from sessiond_webhook.ingress import problems as webhook_problems
from sessiond_webhook.ingress import settings as webhook_settings
from sessiond_webhook.poster import settings as poster_settings
from sessiond_worker import cli as worker_commands
from sessiond_worker import settings as worker_settings
from sessiond_worker.tasks.model import NewTask
from sessiond_worker.tasks.store import Tasks
from support.goldens import (
    SENTENCE,
    Answer,
    Golden,
    Http,
    Mask,
    Reader,
    Records,
    decoded,
    headers_of,
    log_lines,
    metrics_of,
    shapes,
    told,
    without_common,
)
from support.jobs.jobprocess import JobProcess
from support.servers import Github, Redis, Sessiond, Webhook, eventually, free_port, scripted_env
from support.webhook import payloads

GOLDENS = Path(__file__).parent / "goldens"
MODULES: Mapping[str, str] = {
    "sessiond": "sessiond.main",
    "sessionctl": "sessiond_ops.sessionctl",
    "webhook": "sessiond_webhook",
    "handler": "sessiond_webhook.handler",
    "poster": "sessiond_webhook.poster",
    "worker": "sessiond_worker",
}
"""What is started with `python -m`, by the name of the process."""
GHOST = "tk-" + "0" * 32
PASSED = {
    **dict.fromkeys(("LANG", "LC_ALL"), "C.UTF-8"), "TZ": "UTC", "TERM": "dumb", "NOT_FOR_THE_AGENT": "x",
    **dict.fromkeys((
        "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL", "ANTHROPIC_MODEL", "CLAUDE_CODE_OAUTH_TOKEN",
        "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE",
        "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "SCRIPTED_FAULTS",
    ), "x"),
}  # fmt: skip
"""Variables of the service, of which the agent gets some."""
LONG = "#tokens 100000\n#pace 20ms"
"""A turn that goes on until it is cut."""
CALM = {
    "lease_ttl": 300,
    "claim_window": 100,
    "head_wait": 100,
    "poll_grace": 100,
    "drain_deadline": 60,
    "absence": 300,
}
"""Times that no scene comes to; a scene of a deadline has a service with that one short."""

# ---- sessiond ----------------------------------------------------------------------------------


class Service:
    """A sessiond, and what is recorded of its scenes."""

    def __init__(self, service: Sessiond, records: Records, golden: Golden, common: dict[str, str]) -> None:
        self.service, self.records, self.golden, self.common = service, records, golden, common
        self.pool = ThreadPoolExecutor(8)

    def scene(self, name: str) -> "Scene":
        """A scene in a session of its own."""
        return Scene(self, name)


class Scene:
    """One session's story: its calls, the records at named moments, its ledger."""

    def __init__(self, stage: Service, name: str, session: str = "") -> None:
        self.stage, self.name, self.session = stage, name, session or f"octo/{name}"
        service = stage.service
        self.mask = Mask(**{"the-state-directory": str(service.state)})
        self.http = Http(service.url, service.keys, self.mask, self.session)
        self.moments: dict[str, Any] = {}
        self.secrets: dict[str, str] = {}

    # ---- calls

    def take(self, name: str, kind: str = "handler", **more: Any) -> str:
        """A ticket's id."""
        return str(self.http("POST", "~/tickets", {"kind": kind, "key": name, **more}).body["id"])

    def wait(self, ticket: str, holder: str, seconds: float = 30) -> Answer:
        """One wait, to its answer."""
        path, body = f"~/tickets/{ticket}/wait", {"holder": holder, "wait": seconds}
        return self._granted(self.http("POST", path, body), holder)

    def parked(self, ticket: str, holder: str, seconds: float = 60, **more: Any) -> Callable[[], Answer]:
        """A wait that is answered later: the call returned records and gives its answer."""
        path, body = f"~/tickets/{ticket}/wait", {"holder": holder, "wait": seconds}
        asked: Future[Any] = self.stage.pool.submit(self.http.ask, "POST", path, body, **more)
        self.until(
            lambda: any(t["id"] == ticket and t["holder"] == holder and t["present"] for t in self.view()["queue"])
        )
        return lambda: self._granted(self.http.record("POST", path, body, asked.result(60), **more), holder)

    def _granted(self, answer: Answer, holder: str) -> Answer:
        if answer.status == 200 and answer.body["state"] == "granted":
            self.secrets[holder] = answer.body["lease"]["secret"]
        return answer

    def lease(self, name: str, kind: str = "handler") -> str:
        """Takes a ticket and waits: the ticket's id. The holder has the ticket's name."""
        ticket = self.take(name, kind)
        assert self.wait(ticket, name).body["state"] == "granted"
        return ticket

    def call(self, method: str, path: str, holder: str, body: Any = None, **more: Any) -> Answer:
        """A call that shows the holder's secret."""
        return self.http(method, path, body, secret=self.secrets[holder], **more)

    def turn(self, holder: str, prompt: str, **more: Any) -> Answer:
        """One turn, to its result."""
        return self.call("POST", "~/turns", holder, {"prompt": prompt, **more})

    def begun(self, holder: str, prompt: str, **more: Any) -> tuple[str, Callable[[], Answer]]:
        """A turn that has started: its id, and what records its stream once it is over."""
        count = self.count("turn-started")
        secret, body = self.secrets[holder], {"prompt": prompt, **more}
        answer = self.http.ask("POST", "~/turns", body, secret=secret, stream=True)
        reader = Reader(answer, lambda events: events[-1].get("event") == "result")
        self.until(lambda: self.count("turn-started") > count)

        def over() -> Answer:
            reader.end()
            answer.read_data = reader.data
            return self.http.record("POST", "~/turns", body, answer, secret=secret)

        return str(answer.headers["Turn-Id"]), over

    # ---- looks that are not recorded

    def view(self) -> Any:
        return self.http.ask("GET", "~").json()

    def ledger(self) -> list[dict[str, Any]]:
        return self.stage.records.ledger(self.session)

    def count(self, event: str) -> int:
        return sum(entry["event"] == event for entry in self.ledger())

    def until(self, check: Callable[[], Any]) -> Any:
        return eventually(check, 40, lambda: f"{self.name}: {self.stage.service.log_text()}")

    def happened(self, event: str, times: int = 1) -> None:
        """Waits until the ledger has this event so often."""
        self.until(lambda: self.count(event) >= times)
        version = int(self.ledger()[-1]["version"])
        self.until(lambda: self.view()["version"] >= version)

    # ---- what is recorded

    def moment(self, name: str) -> None:
        """The session's records as they are now."""
        self.moments[name] = self.stage.records.dump(self.mask, f"sessiond:{{{self.session}}}:*")

    def end(self) -> None:
        """Puts everything into the golden files."""
        facts = {
            "http": without_common(self.http.facts, self.stage.common),
            "ledger": told(self.mask, self.ledger()),
            "redis": self.moments,
        }
        for kind, found in facts.items():
            if found:
                self.stage.golden.put(f"{self.name}.{kind}", found)


def released(stage: Service) -> None:
    """A ticket from its taking to its release, with a completed turn."""
    s = stage.scene("released")
    s.http("GET", "~")
    s.http("GET", "~/ledger")
    ticket = s.take("first")
    s.moment("queued")
    s.http("POST", "~/tickets", {"kind": "handler", "key": "first"})
    s.http("GET", f"~/tickets/{ticket}")
    assert s.wait(ticket, "h").body["state"] == "granted"
    s.moment("granted")
    s.call("POST", "~/lease/renew", "h")
    second = s.take("second", priority=0)
    worker = s.take("third", "worker")
    assert s.wait(second, "h-2", 0).body["state"] == "waiting"
    s.wait(worker, "w", 0)
    s.http("GET", "~")
    done = s.turn("h", 'What is this?\n#tokens 2\n#cost 0.25\n#ask Read {"file_path": "/x"}', key="t", model="other")
    turn = done.headers["Turn-Id"]
    s.http("GET", f"~/turns/{turn}")
    s.http("GET", "~/turns?key=t")
    s.turn("h", 'What is this?\n#tokens 2\n#cost 0.25\n#ask Read {"file_path": "/x"}', key="t", model="other")
    s.turn("h", "Another prompt", key="t")
    s.turn("h", "#say raw", raw=True)
    s.moment("turns are closed")
    s.call("DELETE", "~/lease", "h")
    s.call("DELETE", "~/lease", "h")
    s.call("POST", "~/lease/renew", "h")
    s.http("GET", f"~/tickets/{ticket}")
    s.wait(ticket, "h", 0)
    s.http("DELETE", f"~/tickets/{second}")
    s.http("DELETE", f"~/tickets/{worker}", {"holder": "w"})
    s.moment("everything is over")
    entries = s.http.ask("GET", "~/ledger?count=5000").json()["entries"]
    s.http("GET", "~/ledger?count=2")
    s.http("GET", f"~/ledger?after={entries[-1]['id']}&wait=0.01")
    stream = s.http.ask("GET", f"~/ledger?after={entries[-3]['id']}", stream=True, Accept="text/event-stream")
    reader = Reader(stream, lambda events: len(events) == 2)
    reader.end()
    stream.read_data = reader.data
    s.http.record("GET", "~/ledger?after=<entry>", None, stream)
    s.end()


def cancelled(stage: Service) -> None:
    """Turns that are cut: by their holder, by their time, by an operator."""
    s = stage.scene("cancelled")
    s.lease("h")
    turn, over = s.begun("h", LONG, key="t")
    s.moment("in a turn")
    s.http("GET", "~")
    s.http("GET", f"~/turns/{turn}")
    s.turn("h", "#say two")
    s.turn("h", LONG, key="t")
    s.http("POST", "~/conversation", {})
    s.call("DELETE", f"~/turns/{turn}", "h")
    over()
    s.call("DELETE", f"~/turns/{turn}", "h")
    s.turn("h", LONG, key="t", timeout=2)
    turn, over = s.begun("h", LONG)
    s.http("DELETE", f"~/turns/{turn}")
    over()
    s.moment("turns are closed")
    s.call("DELETE", "~/lease", "h")
    s.end()


def failed(stage: Service) -> None:
    """Turns that fail, and a process that is no longer used."""
    s = stage.scene("failed")
    s.lease("h")
    s.turn("h", "#say")
    s.turn("h", "#fail API Error: overloaded")
    s.turn("h", "#error")
    s.turn("h", "#at text raw=garbage\n#say two")
    s.happened("agent-reaped")
    s.turn("h", "#say well", key="after")
    s.moment("turns are closed")
    s.call("DELETE", "~/lease", "h")
    s.end()


def preempted(stage: Service) -> None:
    """A worker in mid-turn, and a handler's ticket."""
    s = stage.scene("preempted")
    worker = s.lease("w", "worker")
    _, over = s.begun("w", LONG, key="t")
    handler = s.take("h")
    over()
    s.happened("back")
    s.call("POST", "~/lease/renew", "w")
    s.wait(worker, "w", 0)
    s.wait(handler, "h")
    s.moment("the handler holds")
    s.http("GET", "~")
    s.call("DELETE", "~/lease", "h")
    s.wait(worker, "w")
    s.call("DELETE", "~/lease", "w")
    s.end()


def forced(stage: Service) -> None:
    """A lease that an operator ends, and an agent that does not listen."""
    s = stage.scene("forced")
    ticket = s.lease("h")
    _, over = s.begun("h", f"#fault ignore-interrupt\n{LONG}")
    fence = s.view()["holder"]["fence"]
    s.http("POST", "~/force-release", {"fence": fence + 1, "reason": "stuck"})
    s.http("POST", "~/force-release", {"fence": fence, "reason": "stuck"})
    second = s.take("second")
    s.wait(second, "h-2", 0)
    s.http("GET", "~")
    s.moment("draining")
    s.http("POST", "~/force-release", {"fence": fence, "reason": "stuck still"})
    over()
    s.http("GET", f"~/tickets/{ticket}")
    s.call("POST", "~/lease/renew", "h")
    s.call("DELETE", "~/lease", "h")
    s.call("POST", "~/turns", "h", {"prompt": "too late"})
    s.wait(second, "h-2")
    s.call("DELETE", "~/lease", "h-2")
    s.end()


def withdrawn(stage: Service) -> None:
    """Several holders of one ticket; tickets that are withdrawn."""
    s = stage.scene("withdrawn")
    held, queued = s.lease("a"), s.take("b")
    old = s.parked(queued, "old")
    s.wait(queued, "new", 0)
    old()
    s.wait(queued, "old", 0)
    s.http("DELETE", f"~/tickets/{queued}", {"holder": "old"})
    s.http("POST", "~/tickets", {"kind": "worker", "key": "b"})
    s.wait(held, "other", 0)
    s.moment("two holders")
    s.http("DELETE", f"~/tickets/{held}", {"holder": "other"})
    s.http("DELETE", f"~/tickets/{held}")
    s.call("POST", "~/lease/renew", "a")
    s.http("GET", f"~/tickets/{held}")
    s.wait(queued, "new")
    gone = s.take("c")
    s.http("DELETE", f"~/tickets/{gone}")
    s.http("GET", f"~/tickets/{gone}")
    s.call("DELETE", "~/lease", "new")
    s.end()


def restarted(stage: Service) -> None:
    """An agent that an operator stops in a turn; a fresh conversation; what the agent is told and started with."""
    s = stage.scene("restarted")
    place = stage.service.state / "work" / s.session
    place.mkdir(parents=True)
    (place / "heard").touch()
    s.lease("h")
    s.turn("h", "#say one")
    s.turn("h", "#say two", model="other")
    agent = psutil.Process(s.view()["agent"]["pid"])
    argv, environ = agent.cmdline(), agent.environ()
    turn, over = s.begun("h", LONG)
    s.http("POST", "~/agent/restart", {})
    over()
    s.http("GET", f"~/turns/{turn}")
    s.http("POST", "~/conversation", {})
    s.turn("h", "#say afresh")
    s.moment("a fresh conversation")
    s.call("DELETE", "~/lease", "h")
    heard = [json.loads(line) for line in (place / "heard").read_text().splitlines()]
    first = argv.index("-p")
    stage.golden.put(
        "agent.told",
        {
            "argv": [s.mask.value(word, "argv") for word in argv[first:]],
            "environ": sorted(environ),
            "lines": [spoken(s.mask, line) for line in heard],
        },
    )
    s.end()


def spoken(mask: Mask, line: dict[str, Any]) -> Any:
    """A line that the agent is told: the prompt is prose around what was asked."""
    if line.get("type") == "user":
        asked = [text for text in line["message"]["content"].splitlines() if text.startswith("#")]
        line = {**line, "message": {**line["message"], "content": f"<prompt with {' '.join(asked)}>"}}
    if "request_id" in line:
        line = {**line, "request_id": "<request>"}
    return mask.value(line)


def tasks(stage: Service) -> None:
    """A background task, which the lease's end stops."""
    s = stage.scene("tasks")
    s.lease("h")
    s.turn("h", "#bg 600s\n#say begun")
    s.happened("tasks")
    s.moment("a task runs")
    s.until(lambda: s.view()["agent"]["state"] == "idle")
    s.call("DELETE", "~/lease", "h")
    s.happened("drained")
    s.moment("it is stopped")
    s.end()


def hung_up(stage: Service) -> None:
    """A wait whose caller goes away."""
    s = stage.scene("hung-up")
    s.lease("z")
    ticket = s.take("a")
    link = http.client.HTTPConnection("127.0.0.1", stage.service.port, timeout=60)
    headers = {"Authorization": f"Bearer {stage.service.keys['handler']}", "Content-Type": "application/json"}
    body = json.dumps({"holder": "h", "wait": 60})
    link.request("POST", f"/v1/sessions/{s.session}/tickets/{ticket}/wait", body, headers)
    s.happened("present", 2)
    link.close()
    s.happened("absent")
    s.http("GET", f"~/tickets/{ticket}")
    s.http("DELETE", f"~/tickets/{ticket}")
    s.call("DELETE", "~/lease", "z")
    s.end()


def refused(stage: Service) -> None:
    """Requests that are refused as they stand."""
    s = stage.scene("refused")
    h = s.http
    for path in ("/healthz", "/readyz", "/v1/sessions/octo/nobody"):
        h("GET", path, role=None if path.endswith("z") else "viewer")
    for path in ("/openapi.json", "/metrics"):
        found = h.ask("GET", path, role=None)
        h.facts.append({"call": f"GET {path}", "status": found.status, "headers": h.mask.value(headers_of(found))})
    h("GET", "~", role=None)
    h("GET", "~", role=None, Authorization="Bearer wrong")
    for role, body in (("handler", "worker"), ("worker", "handler"), ("viewer", "handler")):
        h("POST", "~/tickets", {"kind": body}, role=role)
    h("POST", "~/force-release", {"fence": 1, "reason": "x"}, role="handler")
    for body in ({}, {"kind": "boss"}, {"kind": "handler", "priority": 10}, {"kind": "handler", "colour": 1}):
        h("POST", "~/tickets", body)
    h("POST", "~/tickets", b"{", Content_Type="application/json")
    h("POST", "~/tickets", b"kind=handler", Content_Type="text/plain")
    h("POST", "~/tickets", b" " * (5 * 2**20), Content_Type="application/json")
    h("POST", "~/lease/renew")
    h("POST", "~/lease/renew", Lease_Secret="never-given")
    h("POST", "~/turns", {"prompt": "x"}, Lease_Secret="never-given")
    h("GET", "/nowhere")
    h("GET", f"~/tickets/{GHOST}")
    h("POST", f"~/tickets/{GHOST}/wait", {"holder": "h"})
    h("GET", f"~/turns/tu-{'0' * 32}")
    h("DELETE", f"~/turns/tu-{'0' * 32}")
    h("GET", "~/turns?key=none")
    h("GET", "~/turns")
    h("GET", "~/ledger?after=x")
    h("PUT", "~/tickets", {})
    h("GET", "/v1/sessions/oc!to/hello")
    s.end()


def boarded(stage: Service) -> None:
    """The board: its files, the cookie, its stream."""
    s = stage.scene("board")
    h = s.http
    for path in ("/", "/board/board.css", "/board/board.js", "/board/none"):
        h("GET", path, role=None)
    tag = h.ask("GET", "/", role=None).headers["ETag"]
    h("GET", "/", role=None, If_None_Match=tag)
    h("GET", "/v1/board", role=None)
    h("POST", "/v1/board/sign-in", {"key": "wrong"}, role=None)
    signed = h("POST", "/v1/board/sign-in", {"key": stage.service.keys["viewer"]}, role=None)
    cookie = signed.headers["Set-Cookie"].partition(";")[0]
    h("GET", "/v1/board?session=noslash", role=None, Cookie=cookie)
    h("GET", "/v1/board", role=None, Cookie="sessiond_board=1.x")
    h("POST", "/v1/board/sign-out", {}, role=None, Cookie=cookie)
    s.take("z", "worker")
    path = f"/v1/board?session={s.session}"
    answer = h.ask("GET", path, role=None, stream=True, Cookie=cookie, Accept="text/event-stream")
    over = threading.Event()
    reader = Reader(answer, lambda events: over.is_set())

    def events(name: str) -> list[Any]:
        return [e["data"] for e in reader.events if e["event"] == name]

    s.until(lambda: events("hello"))
    ticket = s.lease("a")
    s.until(lambda: any(d["holder"] for d in events("detail")))
    picture = h.ask("GET", path, role="viewer").json()
    s.call("DELETE", "~/lease", "a")
    s.until(lambda: any(v.get("ended") or v.get("ended_at") for d in events("handoffs") for v in d["handoffs"]))
    over.set()
    held = [d for d in events("detail") if d["holder"]][-1]
    mine = {"hello": events("hello")[0], "picture": picture}
    for found in mine.values():
        found["sessions"] = [row for row in found["sessions"] if row["session"] == s.session]
    told_last = {name: events(name)[-1] for name in ("session", "handoffs")}
    stage.golden.put("board.stream", s.mask.value({**mine, "detail": held, **told_last, "headers": headers_of(answer)}))
    s.http("GET", f"~/tickets/{ticket}")
    s.end()


def board_full(stage: Service) -> None:
    """More viewers of the board than it takes."""
    s = stage.scene("board-full")
    head = f"GET /v1/board HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {stage.service.keys['viewer']}\r\n"
    with ExitStack() as viewers:
        took = True
        while took:
            link = viewers.enter_context(socket.create_connection(("127.0.0.1", stage.service.port), timeout=60))
            link.sendall(f"{head}Accept: text/event-stream\r\n\r\n".encode())
            took = b" 200 " in link.recv(65536)
        s.http("GET", "/v1/board")
    s.end()


# ---- deadlines


def expired(stage: Service) -> None:
    """A worker's lease that nobody renews, and is given up."""
    s = stage.scene("expired")
    ticket = s.lease("w", "worker")
    s.call("POST", "~/lease/renew", "w")
    s.happened("back")
    s.call("POST", "~/lease/renew", "w")
    s.http("GET", f"~/tickets/{ticket}")
    s.call("DELETE", "~/lease", "w")
    s.http("GET", f"~/tickets/{ticket}")
    s.end()


def held_too_long(stage: Service) -> None:
    """A handler's lease that reaches its limit in a turn whose agent does not listen."""
    s = stage.scene("hold-limit")
    ticket = s.lease("h")
    _, over = s.begun("h", f"#fault ignore-interrupt\n{LONG}")
    over()
    s.happened("drained")
    s.call("POST", "~/lease/renew", "h")
    s.http("GET", f"~/tickets/{ticket}")
    s.end()


def lost_thrice(stage: Service) -> None:
    """A lease that is never claimed."""
    s = stage.scene("lost-thrice")
    ticket = s.take("a")
    for number in range(3):
        s.wait(ticket, "h")
        s.happened("ended", number + 1)
    s.call("POST", "~/lease/renew", "h")
    s.http("GET", f"~/tickets/{ticket}")
    s.end()


def passed_over(stage: Service) -> None:
    """An absent head, for which the lock waits only so long."""
    s = stage.scene("passed-over")
    ahead, behind = s.take("a"), s.take("b")
    s.wait(behind, "h")
    s.http("GET", f"~/tickets/{ahead}")
    s.call("DELETE", "~/lease", "h")
    s.http("DELETE", f"~/tickets/{ahead}")
    s.end()


def too_old(stage: Service) -> None:
    """Tickets on which nobody waits any more: absent, lapsed, ended."""
    s, t = stage.scene("too-old"), stage.scene("absent")
    handler = s.take("a")
    s.happened("lapsed")
    s.http("GET", f"~/tickets/{handler}")
    t.lease("z")
    waits = t.take("w", "worker")
    t.wait(waits, "w", 0)
    t.happened("absent")
    for scene, ticket in ((s, handler), (t, waits)):
        scene.happened("ticket-ended")
        scene.http("GET", f"~/tickets/{ticket}")
        scene.moment("the ticket has ended")
    t.call("DELETE", "~/lease", "z")
    s.end()
    t.end()


# ---- what the service cannot do


def broken(stage: Service) -> None:
    """An agent that cannot be started."""
    s = stage.scene("agent-broken")
    s.lease("h")
    s.turn("h", "hello")
    s.happened("agent-broken")
    s.turn("h", "hello")
    s.http("GET", "~")
    s.moment("broken")
    s.call("DELETE", "~/lease", "h")
    s.end()


def not_owner(stage: Service, start_other: Callable[[], Service]) -> None:
    """A session that another instance owns. The other one starts later: it would take an unowned session over."""
    s = stage.scene("not-owner")
    s.take("a")
    other = start_other()
    elsewhere = Scene(other, "not-owner", s.session)
    elsewhere.http("POST", "~/tickets", {"kind": "handler"})
    elsewhere.http("GET", "~")
    stage.golden.put("elsewhere.http", without_common(elsewhere.http.facts, other.common))
    s.end()


def killed(stage: Service) -> None:
    """A service that is killed in a turn, and started again; another session's queue is full by then."""
    s, full = stage.scene("killed"), stage.scene("queue-full")
    full.take("first")
    s.lease("h")
    turn, _ = s.begun("h", LONG, key="t")
    stage.service.kill9()
    stage.records.redis.hset(f"sessiond:{{{full.session}}}:meta", "arrivals", 2**42 - 1)
    s.moment("killed")
    stage.service.start()
    s.happened("turn-closed")
    s.http("GET", f"~/turns/{turn}")
    s.call("POST", "~/lease/renew", "h")
    s.turn("h", "#say again", key="t")
    s.call("DELETE", "~/lease", "h")
    s.end()
    full.http("POST", "~/tickets", {"kind": "handler"})
    full.end()


def internal(stage: Service) -> None:
    """A record that nobody can read."""
    s = stage.scene("internal")
    s.take("a")
    turn = "tu-" + "1" * 32
    stage.records.redis.set(f"sessiond:{{{s.session}}}:turn:{turn}", "no JSON")
    s.http("GET", f"~/turns/{turn}")
    s.end()


SAID_WHILE_AWAY = {f"error event level logger {session}timestamp" for session in ("session ", "")}
"""Fields of the lines that are logged now and then while Redis is away."""


def redis_away(stage: Service, redis_server: Redis) -> None:
    """Redis goes away and comes back."""
    s = stage.scene("redis-away")
    s.lease("h")
    queued = s.take("b")
    parked = s.parked(queued, "h-2")
    stream = s.http.ask("GET", "~/ledger", stream=True, Accept="text/event-stream")
    reader = Reader(stream, lambda events: events[-1].get("event") == "problem")
    redis_server.kill9()
    parked()
    s.http("POST", "~/tickets", {"kind": "handler"})
    s.http("GET", "/readyz", role=None)
    s.http("GET", "/v1/sessions/octo/never-seen")
    ended = reader.end()[-1]
    s.http.facts.append({"call": "GET ~/ledger", "events": [s.mask.value(ended)], "headers": s.http._headers(stream)})
    s.until(
        lambda: {line["fields"] for line in shapes(log_lines(stage.service.log_bytes().decode()))} >= SAID_WHILE_AWAY
    )
    redis_server.start()
    s.until(lambda: s.http.ask("GET", "/readyz").status == 200)
    s.until(lambda: s.http.ask("POST", "~/lease/renew", secret=s.secrets["h"]).status == 200)
    s.call("DELETE", "~/lease", "h")
    s.end()


def stopping(stage: Service) -> None:
    """A service that stops answers who waits."""
    s = stage.scene("stopping")
    s.lease("h")
    queued = s.take("b")
    parked = s.parked(queued, "h-2")
    stage.service.terminate()
    parked()
    s.end()


SCENES: tuple[Callable[[Service], None], ...] = (
    released, cancelled, failed, preempted, forced, withdrawn, restarted, tasks, hung_up, refused, boarded, board_full,
)  # fmt: skip
NOT_PROVOKED: Mapping[str, str] = {}
"""Problem types that no scene provokes, with the reason."""


class Beats:
    """A turn and a ledger in which nothing happens for a while: their streams have a comment now and then."""

    def __init__(self, stage: Service) -> None:
        self.scene = s = stage.scene("beats")
        s.lease("w", "worker")
        self._place = stage.service.state / "work" / s.session
        _, self._over = s.begun("w", "#at text until=go\n#say late")
        last = s.http.ask("GET", "~/ledger?count=5000").json()["next"]
        self._ledger = s.http.ask("GET", f"~/ledger?after={last}", stream=True, Accept="text/event-stream")
        self._reader = Reader(self._ledger, lambda events: events[-1].get("comment") == "beat")
        board = s.http.ask("GET", "/v1/board", stream=True, Accept="text/event-stream")
        self._board = Reader(board, lambda events: events[-1].get("event") == "beat")

    def end(self) -> None:
        s = self.scene
        quiet = self._reader.end()
        (self._place / "go").touch()
        self._over()
        facts = [e for e in quiet if "comment" in e]
        s.http.facts.append(
            {"call": "GET ~/ledger?after=<entry>", "events": facts, "headers": s.http._headers(self._ledger)}
        )
        s.http.facts.append({"call": "GET /v1/board", "events": [s.mask.value(self._board.end()[-1])], "headers": {}})
        s.call("DELETE", "~/lease", "w")
        s.end()


def test_sessiond(redis_server: Redis, tmp_path: Path) -> None:
    with ExitStack() as stack:
        _sessiond(Golden(GOLDENS / "sessiond"), redis_server, tmp_path, stack)


def _sessiond(golden: Golden, redis_server: Redis, place: Path, stack: ExitStack) -> None:
    servers = stack.enter_context(ExitStack())
    services: list[Sessiond] = []
    stack.callback(lambda: all_of(*(service.close for service in services)))

    def start(name: str, *faults: str, redis: Redis | None = None, **times: float) -> Service:
        """Starts a service. Each has a Redis of its own: an instance takes over every session that has no owner."""
        if redis is None:
            redis = Redis()
            servers.callback(redis.close)
        env = {**scripted_env(*faults, **{**CALM, **times}), **PASSED, "SESSIOND_LOG_FORMAT": "json"}
        env["SESSIOND_MAX_AGENTS"] = "20"
        service = Sessiond(redis.url, place / name, env)
        services.append(service)
        common = headers_of(Http(service.url, service.keys, Mask()).ask("GET", "/nowhere"))
        without = {name: value for name, value in common.items() if name != "Content-Type"}
        return Service(service, Records(redis.url), golden, without)

    doomed_redis = Redis()
    servers.callback(doomed_redis.close)
    calm, hasty, limited, slow, absent, mute, doomed = all_of(
        lambda: start("calm", redis=redis_server),
        lambda: start("hasty", lease_ttl=0.5, head_wait=0.3),
        lambda: start("limited", max_hold=5, drain_deadline=0.3),
        lambda: start("slow", claim_window=0.3),
        lambda: start("absent", absence=0.4, ticket_ttl=4, poll_grace=0.2),
        lambda: start("mute", "exit-start=3"),
        lambda: start("doomed", redis=doomed_redis, owner_ttl=6, owner_renew=0.5, owner_doubt=4),
    )
    golden.put("every-answer.headers", calm.common)
    beats = Beats(calm)
    all_of(
        lambda: [scene(calm) for scene in SCENES],
        lambda: [scene(hasty) for scene in (expired, passed_over)],
        lambda: held_too_long(limited),
        lambda: lost_thrice(slow),
        lambda: too_old(absent),
        lambda: broken(mute),
        lambda: [killed(doomed), internal(doomed), redis_away(doomed, doomed_redis), stopping(doomed)],
    )
    not_owner(calm, lambda: start("other", redis=redis_server))
    beats.end()
    text = Http(calm.service.url, {}, Mask()).ask("GET", "/metrics", role=None).data.decode()
    golden.put("metrics", metrics_of(text, counted))
    golden.put("logs", shapes(line for service in services for line in log_lines(service.log_bytes().decode())))
    check_provoked(golden, sessiond_problems.KINDS, NOT_PROVOKED)
    entries = [e for name, facts in golden.facts.items() if name.endswith(".ledger") for e in facts]
    for (event, member), values in REACHED.items():
        assert {e[member] for e in entries if e["event"] == event} == set(values.split()), (event, member)
    golden.check()


def all_of(*works: Callable[[], Any]) -> list[Any]:
    """All of this at once; the answers, in order."""
    with ThreadPoolExecutor(len(works)) as pool:
        return [asked.result() for asked in [pool.submit(work) for work in works]]


REACHED = {
    ("turn-closed", "outcome"): "completed cancelled failed lost",
    ("ended", "reason"): "released unclaimed preempted expired hold-limit forced withdrawn",
    ("ticket-ended", "reason"): "released withdrawn hold-limit forced lost-thrice too-old",
}
"""What the ledgers of the scenes name, all together."""
COUNTED = re.compile(
    r"sessiond_(handoffs|inversions|misorders|violations|passed_over|lapsed|preemptions|leases_ended|drains|recoveries"
    r"|turns|tokens|cost_usd)_total"
)
"""Samples whose values are the same each time."""


def counted(name: str, labels: Mapping[str, str]) -> bool:
    return bool(COUNTED.fullmatch(name))


def check_provoked(golden: Golden, kinds: Mapping[str, Any], listed: Mapping[str, str]) -> None:
    """Every problem type is in some recorded answer, or listed."""
    text = json.dumps(golden.facts)
    provoked = {kind for kind in kinds if f'"type": "{kind}"' in text}
    assert provoked | listed.keys() == set(kinds), f"not provoked: {sorted(set(kinds) - provoked - listed.keys())}"
    assert not provoked & listed.keys(), "what is provoked is not listed"


# ---- webhook: what arrives -----------------------------------------------------------------------

HUB = {"id": 4711, "login": "helper[bot]", "type": "Bot"}
CODERTOCAT = "codertocat/hello-world"
PROBLEM_SECONDS = 1


class Deliveries:
    """A webhook, and the deliveries that it is sent."""

    def __init__(self, service: Webhook, mask: Mask) -> None:
        self.service = service
        self.http = Http(service.url, {}, mask)
        common = headers_of(self.http.ask("GET", "/healthz", role=None))
        self.common = {name: value for name, value in common.items() if name != "Content-Type"}

    def __call__(self, delivery: str, event: str, payload: Any = None, what: str = "", **more: Any) -> Any:
        """A delivery that is recorded; `what` says what is in it."""
        answer = self.service.post(event, payload, delivery, **more)
        self.http.record("POST", "/github", None, answer)
        self.http.facts[-1] |= {"delivery": delivery, "event": event, "what": what}
        return answer

    def look(self, path: str) -> None:
        self.http("GET", path, role=None)

    def raw(self, what: str, head: bytes, *pieces: bytes) -> None:
        """A request as it stands; its status and problem are recorded."""
        with socket.create_connection(("127.0.0.1", self.service.port), timeout=60) as link:
            link.sendall(head)
            for piece in pieces:
                link.sendall(piece)
            answer = http.client.HTTPResponse(link)
            answer.begin()
            data = answer.read()
        made = urllib3.HTTPResponse(data, headers=dict(answer.getheaders()), status=answer.status)
        self.http.record("POST", "/github", None, made)
        self.http.facts[-1] |= {"what": what}

    @property
    def facts(self) -> list[Any]:
        return without_common(self.http.facts, self.common)


def test_webhook(redis_server: Redis, tmp_path: Path) -> None:
    golden, records = Golden(GOLDENS / "webhook"), Records(redis_server.url)
    with ExitStack() as stack:
        service = Sessiond(redis_server.url, tmp_path / "sessiond", scripted_env(**CALM))
        stack.callback(service.close)
        env = {
            "SESSIOND_URL": service.url, "SESSIOND_KEY": service.keys["handler"], "WEBHOOK_PROCESSES": "1",
            "WEBHOOK_LOG_FORMAT": "json", "WEBHOOK_ARRIVAL_SECONDS": "1", "WEBHOOK_TICKET_SECONDS": "30",
            "WEBHOOK_BYTES_IN_FLIGHT": str(4 * 2**20),
        }  # fmt: skip
        webhook = Webhook(redis_server.url, tmp_path / "webhook", env)
        stack.callback(webhook.close)
        mask = Mask()
        send = Deliveries(webhook, mask)
        arrive(send)
        golden.put("every-answer.headers", send.common)
        golden.put("deliveries.http", send.facts)
        golden.put("deliveries.ledger", told(mask, records.ledger(CODERTOCAT)))
        golden.put("deliveries.redis", records.dump(mask, "webhook:*", "worker:*", "rq:job:*", "rq:queue*"))
        text = send.http.ask("GET", "/metrics", role=None)
        golden.put("metrics", metrics_of(text.data.decode(), lambda name, labels: "_total" in name or name in GAUGES))
        send = Deliveries(webhook, Mask())
        refuse(send, records, redis_server)
        golden.put("refused.http", send.facts)
        golden.put("logs", shapes(log_lines(webhook.log_text(0))))
    check_provoked(golden, webhook_problems.KINDS, {})
    golden.check()


GAUGES = frozenset({"webhook_demands", "webhook_pending_posts", "worker_tasks"})


def arrive(send: Deliveries) -> None:
    """Every kind of delivery, and what each comes to."""
    comment, review_comment, review = payloads.comment, payloads.review_comment, payloads.review
    for path in ("/healthz", "/readyz"):
        send.look(path)
    send("d-1", "ping", payloads.load("ping"))
    send("d-2", "issue_comment", comment("IC_1"), "a comment")
    send("d-2", "issue_comment", comment("IC_1"), "the same delivery")
    send("d-3", "issue_comment", comment("IC_1"), "the same comment")
    edited = {"comment__updated_at": "2030-01-01T00:00:00Z"}
    send("d-4", "issue_comment", comment("IC_1", "@helper otherwise?", action="edited", **edited), "its edit")
    send("d-5", "pull_request_review_comment", review_comment(), "a comment on a line")
    send("d-6", "pull_request_review", review(body="@helper and this?"), "a review")
    send("d-7", "issue_comment", comment("IC_2"), "a comment that is deleted")
    send("d-8", "issue_comment", comment("IC_2", action="deleted"), "its deletion")
    send("d-9", "issue_comment", comment("IC_3", action="deleted"), "a deletion that comes first")
    send("d-10", "issue_comment", comment("IC_3"), "its comment")
    send("d-11", "issue_comment", comment("IC_4", "@helper early", action="edited"), "an edit that comes first")
    closed = {"issue__number": 9, "issue__state": "closed"}
    send("d-12", "issue_comment", comment("IC_5", **closed), "a comment on a closed pull request")
    send("d-13", "pull_request", payloads.load("pull_request.closed"), "a pull request closes")
    label = payloads.change(payloads.load("issues.labeled"), label__name="sessiond-task")
    send("d-14", "issues", label, "an issue with the task label")
    send("d-14", "issues", label, "the same delivery")
    assigned = payloads.change(payloads.load("issues.assigned"), assignee=HUB)
    send("d-15", "issues", assigned, "an issue assigned to the bot")
    send("d-16", "pull_request_review", review("PRR_2", state="approved"), "an approval")
    ignored = [
        ("star", {"action": "created"}, "another event"),
        ("issue_comment", {"action": "pinned"}, "another action"),
        ("issue_comment", comment("IC_6", comment__user=HUB), "the bot's own"),
        ("issue_comment", comment("IC_6", comment__user={"id": 5, "login": "x[bot]", "type": "Bot"}), "another bot's"),
        ("issue_comment", comment("IC_6", comment__author_association="NONE"), "somebody else's"),
        ("issue_comment", comment("IC_6", comment__user=None), "nobody's"),
        ("issue_comment", comment("IC_6", "no mention"), "no mention"),
        ("issue_comment", comment("IC_6", " "), "no body"),
        ("issues", payloads.load("issues.labeled"), "another label"),
        ("issues", payloads.load("issues.assigned"), "another assignee"),
        ("issues", payloads.change(label, issue__state="closed"), "a closed issue"),
        ("issues", payloads.change(label, issue__pull_request={}), "a pull request"),
    ]
    for number, (event, payload, what) in enumerate(ignored):
        send(f"i-{number}", event, payload, what)
    send("d-17", "issue_comment", comment("IC_7"), "a comment as a form", form=True)


def refuse(send: Deliveries, records: Records, redis_server: Redis) -> None:
    """Every problem."""
    ping = payloads.load("ping")
    send("r-1", "ping", ping, "no signature", headers={"X-Hub-Signature-256": None})
    send("r-2", "ping", ping, "another secret", secret="another")
    send("r-3", "ping", ping, "another type", headers={"Content-Type": "text/plain"})
    send("r-4", "ping", None, "no JSON", body=b"{")
    send("r-5", "ping", ping, "no event", headers={"X-GitHub-Event": None})
    send("r-6", "issue_comment", {"action": "created"}, "an unusable payload")
    send("r-7", "ping", None, "too many bytes at once", body=b'"' + b"x" * (5 * 2**20) + b'"')
    for path in ("/nothing", "/github"):
        send.look(path)
    head = b"POST /github HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    send.raw("a length over the limit", head + b"Content-Length: 26214401\r\n\r\n")
    send.raw("a body that does not come", head + b"Content-Length: 5\r\n\r\n{}")
    records.redis.set("webhook:demand:IC_bad", "no JSON")
    send("r-8", "issue_comment", payloads.comment("IC_bad"), "a record that cannot be read")
    records.redis.zadd(f"webhook:open:{CODERTOCAT}", {"IC_bad": 1})
    send.look("/metrics")
    redis_server.kill9()
    send("r-9", "issue_comment", payloads.comment("IC_8"), "Redis is away")
    send.look("/readyz")
    redis_server.start()


# ---- handler, poster, worker ---------------------------------------------------------------------


class Crew:
    """Everything on one Redis; each process is started when its part comes."""

    def __init__(self, redis_server: Redis, place: Path, stack: ExitStack) -> None:
        self.place, self.stack, self.records = place, stack, Records(redis_server.url)
        times = {**CALM, "claim_window": 20, "lease_ttl": 20}
        self.service = Sessiond(redis_server.url, place / "sessiond", scripted_env(**times))
        self.github = Github()
        stack.callback(self.github.close)
        stack.callback(self.service.close)
        self.github.thread(1, repo="Codertocat/Hello-World", pull=True)
        logs = {f"{name}_LOG_FORMAT": "json" for name in ("WEBHOOK", "HANDLER", "POSTER", "WORKER")}
        self.env = {
            "REDIS_URL": redis_server.url, "SESSIOND_URL": self.service.url, "SESSIOND_LEASE_TTL": "20",
            "SESSIOND_KEY": self.service.keys["handler"], "WEBHOOK_PROCESSES": "1", "WEBHOOK_TICKET_SECONDS": "30",
            "OUTBOX_DIR": str(place / "outbox"), "POSTER_PACE": "0.01", "RUN_TTL": "15", "SWEEP_SECONDS": "3600",
            "WORKER_SWEEP_SECONDS": "3600", "WORKER_CLAIM_SECONDS": "15", "WORKER_RETRY_SECONDS": "0.1", **logs,
        }  # fmt: skip
        self.webhook = Webhook(redis_server.url, place / "webhook", self.env)
        stack.callback(self.webhook.close)
        self.processes: dict[str, JobProcess] = {}
        self.ports: dict[str, int] = {}

    def start(self, name: str, **env: str) -> JobProcess:
        """A process with its metrics on a port; ready when it takes jobs."""
        kind = name.partition("-")[0]
        self.ports[name] = free_port()
        made = JobProcess(MODULES[kind], self.place / name, {**self.env, "METRICS_PORT": str(self.ports[name]), **env})
        self.stack.callback(made.close)
        self.processes[name] = made
        return made

    def metrics(self, name: str) -> Any:
        url = f"http://127.0.0.1:{self.ports[name]}"
        text = Http(url, {}, Mask()).ask("GET", "/metrics", role=None).data.decode()
        return metrics_of(text, lambda sample, labels: sample.endswith("_total"))

    def demand(self, key: str) -> Any:
        return json.loads(self.records.redis.get(f"webhook:demand:{key}") or "{}")

    def until(self, check: Callable[[], Any]) -> Any:
        return eventually(check, 60, lambda: "".join(p.log()[-1500:] for p in self.processes.values()))

    def states(self, **wanted: str) -> None:
        """Waits until these demands have these states."""
        self.until(lambda: all(self.demand(key).get("state") == state for key, state in wanted.items()))

    def free(self, session: str) -> None:
        """Waits until nobody holds the session and nobody waits."""
        client = self.service.client()
        self.until(lambda: not (view := client.view(session))["queue"] and view["holder"] is None)


def test_callers(redis_server: Redis, tmp_path: Path) -> None:
    golden = Golden(GOLDENS / "callers")
    with ExitStack() as stack:
        crew = Crew(redis_server, tmp_path, stack)
        mask = Mask(**{"the-directory": str(tmp_path), "the-github": crew.github.url})
        answered(crew, golden, mask)
        worked(crew, golden, mask)
        for name in ("handler", "worker"):
            golden.put(f"{name}.metrics", crew.metrics(name))
        for name in ("handler", "poster", "worker"):
            lines = [line for n, p in crew.processes.items() if n.startswith(name) for line in log_lines(p.log())]
            golden.put(f"{name}.logs", shapes(line for line in lines if "rq" not in str(line.get("logger"))))
    golden.check()


def answered(crew: Crew, golden: Golden, mask: Mask) -> None:
    """Comments, seen, answered and posted: on GitHub, then into the outbox."""
    send = Deliveries(crew.webhook, mask)
    promise = '#lines It will be done.|{"promise": {"title": "Mend it", "instructions": "Mend the parser."}}'
    bodies = {"IC_1": "#say an answer", "IC_2": "#fail API Error: overloaded", "IC_3": promise, "IC_4": "#say never"}
    for key, body in bodies.items():
        send(key, "issue_comment", payloads.comment(key, f"@helper what is {key}?\n{body}"))
    poster = crew.start("poster", **crew.github.env())
    crew.until(lambda: all((crew.demand(key)["note"] or {}).get("shown") for key in bodies))
    send("gone", "issue_comment", payloads.comment("IC_4", action="deleted"))
    crew.until(lambda: not crew.records.redis.exists("webhook:threads"))
    crew.until(lambda: not list(crew.records.redis.scan_iter("rq:job:posts*")))
    golden.put("seen.redis", crew.records.dump(mask, "webhook:*"))
    assert poster.stop() == 0
    crew.start("handler")
    crew.states(IC_1="answered", IC_2="failed", IC_3="answered", IC_4="refused")
    crew.until(lambda: not list(crew.records.redis.scan_iter("rq:job:demands*")))
    golden.put("answered.redis", crew.records.dump(mask, "webhook:*", "worker:*", "rq:queue:*", "rq:job:*"))
    second = crew.start("poster-2", **crew.github.env())
    crew.states(IC_1="posted", IC_3="posted")
    crew.until(lambda: not crew.records.redis.exists("webhook:threads"))
    crew.until(lambda: not list(crew.records.redis.scan_iter("rq:job:posts*")))
    golden.put("posted.redis", crew.records.dump(mask, "webhook:*"))
    golden.put("poster.metrics", crew.metrics("poster-2"))
    assert second.stop() == 0
    golden.put("github", [written(mask, one) for one in crew.github.log()])
    calls = {f"{one['method']} {re.sub('[0-9]{2,}', '<id>', one['path'])}" for one in crew.github.requests()}
    golden.put("github.calls", sorted(mask.text(re.sub("since=[^&]*", "since=<time>", call)) for call in calls))
    for key, event, payload in (
        ("PRRC_1", "pull_request_review_comment", payloads.review_comment(body="@helper why?\n#say because")),
        ("PRR_1", "pull_request_review", payloads.review(body="@helper and?\n#say so")),
    ):
        send(key, event, payload)
        crew.states(**{key: "answered"})
        crew.free(CODERTOCAT)
    third = crew.start("poster-3")
    crew.states(PRRC_1="posted", PRR_1="posted")
    crew.until(lambda: not crew.records.redis.exists("webhook:threads"))
    assert third.stop() == 0
    golden.put("outbox.redis", crew.records.dump(mask, "webhook:demand:PRR*"))
    files = sorted((crew.place / "outbox").rglob("*.md"))
    golden.put("outbox", {str(f.relative_to(crew.place / "outbox")): f.read_text().splitlines() for f in files})
    for fact in send.facts:
        if fact["delivery"] in ("PRRC_1", "PRR_1"):  # a handler runs: it may have started before the 202
            assert fact["body"]["state"] in ("open", "answering")
            fact["body"]["state"] = "<open or answering>"
    golden.put("callers.http", send.facts)


def written(mask: Mask, one: dict[str, Any]) -> Any:
    """A write on GitHub: its text is prose, apart from the marker."""
    *_, marker = one["body"].splitlines()
    kept = {name: one[name] for name in ("did", "kind", "thread", "by")}
    return {**mask.value(kept), "marker": marker, "lines": one["body"].count("\n") + 1}


def worked(crew: Crew, golden: Golden, mask: Mask) -> None:
    """Tasks: one that is cut and goes on, and every end."""
    session = "octo/tasks"
    crew.records.redis.delete("worker:open")  # the promised task stays as it is
    for job in crew.records.redis.lrange("rq:queue:tasks", 0, -1):
        crew.records.redis.delete(f"rq:job:{job}")
    crew.records.redis.delete("rq:queue:tasks")
    tasks = Tasks(connect(crew.env["REDIS_URL"]))
    crew.start("worker", SESSIOND_KEY=crew.service.keys["worker"])

    def script(*lines: str) -> str:
        path = crew.place / f"script-{len(list(crew.place.glob('script-*')))}"
        path.write_text("\n".join(lines) + "\n")
        return f"Do it.\n#script {path}"

    def said(outcome: str, note: str = "", more: str = "") -> str:
        return f"say={json.dumps({'outcome': outcome, 'note': note})}{more}"

    def add(key: str, *lines: str) -> str:
        return tasks.add(NewTask(key=key, session=session, title="A task", instructions=script(*lines))).id

    def settled(task: str, state: str) -> None:
        crew.until(lambda: (t := tasks.get(task)).state == state and t.ticket is None)
        crew.until(lambda: not list(crew.records.redis.scan_iter("rq:job:tasks*")))

    cut = add("cut", said("more", "half", ";tokens=6000;pace=10ms"), said("done", "all of it"))
    client = crew.service.client()

    def started() -> int:
        return sum(e["event"] == "turn-started" for e in crew.records.ledger(session))

    crew.until(lambda: started() == 1)
    golden.put("running.redis", crew.records.dump(mask, "worker:*"))
    lines = [said("more", "half"), said("done", "all of it")]
    (crew.place / "script-0").write_text("\n".join(lines) + "\n")
    client.take(session, kind="handler", key="person")
    crew.until(lambda: client.view(session)["draining"] is None and client.view(session)["turn"] is None)
    with client.lease(session, kind="handler", key="person", holder="person") as lease:
        assert lease.turn("#say hello").result().completed
        crew.until(lambda: client.view(session)["queue"][0]["present"])
    settled(cut, "done")
    for key, outcome in (("nothing", "nothing-to-do"), ("stuck", "stuck")):
        settled(add(key, said(outcome, "why")), outcome)
    settled(add("fails", "fail=API Error: overloaded"), "stuck")
    begun = started()
    cancelled_task = add("cancelled", said("done", "", ";tokens=6000;pace=10ms"))
    crew.until(lambda: started() == begun + 1)
    tasks.cancel(cancelled_task, "ann")
    settled(cancelled_task, "cancelled")
    golden.put("tasks.redis", crew.records.dump(mask, "worker:*"))
    entries = [e for e in crew.records.ledger(session) if e["event"] != "present"]  # each whenever its run gets to it
    golden.put("tasks.ledger", told(mask, entries))


# ---- commands, environment, OpenAPI ----------------------------------------------------------------

FLAG = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")


def commanded(module: str, *words: str, given: str = "", cwd: Path | None = None, **env: str) -> Any:
    """A command's exit status and what it says, as a process."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    full = {**kept, "COLUMNS": "1000", "USER": "ann", **env}
    command = [sys.executable, "-m", MODULES[module], *words]
    done = subprocess.run(command, env=full, input=given, capture_output=True, text=True, timeout=60, cwd=cwd)
    return done.returncode, done.stdout, done.stderr


def here(*words: str, given: str = "", **env: str) -> Any:
    """sessionctl within this process: its exit status and what it says."""
    before, stdin = dict(os.environ), sys.stdin
    kept = {name: value for name, value in before.items() if not name.startswith(SERVICE_VARIABLES)}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:  # the command wants their numbers
        try:
            os.environ.clear()
            os.environ.update({**kept, "COLUMNS": "1000", "USER": "ann", **env})
            sys.stdin = io.StringIO(given)
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = _status_of(words)
        finally:
            sys.stdin = stdin
            os.environ.clear()
            os.environ.update(before)
            faulthandler.unregister(signal.SIGUSR1)
        out.seek(0)
        err.seek(0)
        return status, out.read(), err.read()


def followed(session: str, **env: str) -> Any:
    """`sessionctl ledger --follow`: its first entries, then Ctrl-C."""
    command = [sys.executable, "-m", MODULES["sessionctl"], "ledger", session, "--follow", "--json"]
    full = {"PATH": os.environ["PATH"], **env}
    with subprocess.Popen(command, env=full, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        first = "".join(follower.stdout.readline() for _ in range(3))
        follower.send_signal(signal.SIGINT)
        follower.stdout.read()
        return follower.wait(20), first, follower.stderr.read() if follower.stderr else ""


def _status_of(words: tuple[str, ...]) -> int:
    try:
        return sessionctl.main(list(words))
    except SystemExit as end:
        return int(end.code or 0)


SERVICE_VARIABLES = ("SESSIOND_", "WEBHOOK_", "REDIS_", "TASK_", "WORKER_", "POSTER_", "GITHUB_", "BOT_", "METRICS_")


class Commands:
    """Runs of commands, recorded."""

    def __init__(self, mask: Mask) -> None:
        self.mask = mask
        self.facts: list[Any] = []

    def __call__(self, run: Callable[..., Any], *words: str, columns: bool = True, **more: Any) -> str:
        """What a run says. `columns`: a line's words are names and values; else they are a sentence."""
        status, out, err = run(*words, **more)
        say = self._columns if columns else self._sentence
        told_on = {
            "out": [self._json(line) or say(line) for line in out.splitlines()],
            "err": [self._sentence(line) for line in err.splitlines()],
        }
        fact = {"command": " ".join(self.mask.text(word) for word in words), "status": status}
        self.facts.append({**fact, **{name: lines for name, lines in told_on.items() if lines}})
        return str(out)

    def _json(self, line: str) -> Any:
        found = decoded(line)
        if isinstance(found, dict) and "invariant" in found:
            found["text"] = SENTENCE
        return None if isinstance(found, str) else self.mask.value(found)

    def _columns(self, line: str) -> str:
        named = re.sub(r"(?<=fence=)\d+", lambda found: self.mask.fence(int(found[0])), self.mask.text(line))
        named = CHANGING.sub("<number>", named)
        return re.sub(r"\([^()]* [^()]*\)", f"({SENTENCE})", PROSE_OF_LINE.sub(SENTENCE, named))

    def _sentence(self, line: str) -> str:
        program, colon, _ = line.partition(": ")
        return f"{program if program in PROGRAMS else '<program>'}: {SENTENCE}" if colon else SENTENCE


SESSIONCTL = ("status", "queue", "ledger", "verify", "ask", "release", "send", "task")
CHANGING = re.compile(r"(?<= v)\d+(?= )|(?<=_ms=)[\d.]+|(?<=pid\":)\d+|(?<=time\":)\d+|(?<=chars=)\d+")
PROSE_OF_LINE = re.compile(r"(?:(?<= why=)|(?<= note=)|(?<= reason=))(?![a-z-]+(?: [a-z_]+=|$)).+?(?= [a-z_]+=|$)")
"""A value that is a sentence, up to the next name."""
PROGRAMS = frozenset(
    {"sessiond", "sessionctl", "webhook", "handler", "worker", *(f"sessionctl {n}" for n in SESSIONCTL)}
)


def test_commands(redis_server: Redis, tmp_path: Path) -> None:
    golden = Golden(GOLDENS / "commands")
    with ExitStack() as stack:
        service = Sessiond(redis_server.url, tmp_path / "sessiond", scripted_env(**CALM))
        stack.callback(service.close)
        webhook = Webhook(redis_server.url, tmp_path / "webhook", {"WEBHOOK_PROCESSES": "1"})
        stack.callback(webhook.close)
        mask = Mask(**{"the-directory": str(tmp_path), "the-redis": redis_server.url, "the-data": str(payloads.DATA)})
        look(golden, mask, service, tmp_path)
        tasks_and_deliveries(golden, mask, redis_server, webhook, tmp_path)
    usages = Commands(Mask())
    for words in HELPED:
        status, out, _ = here(*words, "--help")
        usage = out.partition("\n\n")[0]
        flags = sorted(set(FLAG.findall(out.partition("options:")[2])))
        usages.facts.append(
            {"command": " ".join(words), "status": status, "usage": " ".join(usage.split()), "options": flags}
        )
    golden.put("usage", usages.facts)
    processes(golden, tmp_path)
    golden.check()


HELPED = (
    (), *((name,) for name in SESSIONCTL), *(("task", name) for name in ("add", "list", "show", "cancel", "retry"))
)  # fmt: skip


def look(golden: Golden, mask: Mask, service: Sessiond, place: Path) -> None:
    """Commands that ask sessiond."""
    run, session = Commands(mask), "octo/commands"
    env = {"SESSIOND_URL": service.url, "SESSIOND_KEY": service.keys["admin"]}
    run(here, "status", columns=False, **env)
    run(here, "ask", session, "hello\n#say good morning", **env)
    run(here, "ask", session, "hello\n#say good morning", "--json", "--priority", "0", **env)
    run(here, "ask", session, "#fail API Error: overloaded", **env)
    run(here, "queue", session, columns=False, **env)
    client = service.client()
    client.take(session, key="waits", kind="worker")
    run(here, "status", columns=False, **env)
    run(here, "status", session, "--json", **env)
    run(here, "status", "--json", **env)
    run(here, "queue", session, **env)
    run(here, "queue", session, "--json", **env)
    for number, words in enumerate(((), ("--json",))):
        with client.lease(session, key=f"k-{number}", holder="h") as lease:
            run(here, "status", columns=False, **env)
            run(here, "release", session, "--force", "--reason", "stuck", *words, columns=False, **env)
            lease.abandon()
    run(here, "release", session, "--force", "--reason", "stuck", **env)
    run(here, "release", session, "--force", "--reason", "stuck", "--fence", "7", **env)
    run(here, "ledger", session, **env)
    saved = place / "saved.jsonl"
    saved.write_text(run(here, "ledger", session, "--json", **env))
    run(followed, session, **env)
    run.facts[-1]["command"] = "ledger --follow --json"
    run(here, "verify", session, **env)
    run(here, "verify", "--file", str(saved), "--json", **env)
    wrong = re.sub(r'"fence":\d+', '"fence":7', saved.read_text())
    saved.write_text(wrong)
    run(here, "verify", "--file", str(saved), "--json", **env)
    run(here, "verify", "--file", "/none", **env)
    for words in ((), ("nothing",), ("queue",), ("queue", "noslash"), ("ask", session, "x", "--priority", "10")):
        run(here, *words, **env)
    run(here, "status", **{**env, "SESSIOND_KEY": "wrong"})
    run(here, "status", SESSIOND_URL="http://127.0.0.1:1")
    golden.put("sessions", run.facts)


def tasks_and_deliveries(golden: Golden, mask: Mask, redis_server: Redis, webhook: Webhook, place: Path) -> None:
    """Commands that ask Redis, and the one that asks the webhook."""
    run, env = Commands(mask), {"REDIS_URL": redis_server.url}
    session = "octo/commands"
    made = run(here, "task", "add", session, "A title", "Do it.", "--key", "k", "--turns", "3", "--usd", "1.5", **env)
    task = made.strip()
    run(here, "task", "add", session, "From stdin", "-", "--key", "piped", "--json", given="One.\nTwo.", **env)
    run(here, "task", "list", **env)
    run(here, "task", "list", session, "--state", "queued", "--json", **env)
    run(here, "task", "list", "octo/other", columns=False, **env)
    run(here, "task", "show", task, **env)
    run(here, "task", "show", task, "--json", **env)
    run(here, "task", "cancel", task, **env)
    run(here, "task", "cancel", task, **env)
    run(here, "task", "list", **env)
    run(here, "task", "retry", task, **env)
    run(here, "task", "retry", task, **env)
    run(here, "task", "show", "task-none-1", **env)
    run(here, "task", "add", "noslash", "A title", **env)
    run(here, "task", "list", REDIS_URL="redis://127.0.0.1:1/0")
    secret = {"WEBHOOK_SECRET": Webhook.SECRET}
    file = str(payloads.DATA / "ping.json")
    asked = place / "asked.json"
    asked.write_text(json.dumps(payloads.comment("IC_1")))
    ping = ("send", file, "--url", webhook.url, "--event", "ping", "--delivery")
    run(here, *ping, "s-1", **secret)
    run(here, *ping, "s-2", "--form", "--json", **secret)
    for words in ((), ("--json",)):
        run(
            here,
            "send",
            str(asked),
            "--url",
            webhook.url,
            "--event",
            "issue_comment",
            "--delivery",
            "s-3",
            *words,
            **secret,
        )
    run(here, "send", file, "--url", webhook.url, "--event", "star", "--delivery", "s-4", **secret)
    run(here, *ping, "s-5", "--secret", "wrong")
    run(here, "send", "/none.json", "--event", "ping", "--secret", "x")
    run(here, "send", file, "--event", "ping", SESSIOND_STATE_DIR=str(place))
    golden.put("tasks", run.facts)


def processes(golden: Golden, place: Path) -> None:
    """The services' own commands: what they take, and settings that are not valid."""
    (place / "keys").write_text("")
    state = {"SESSIOND_STATE_DIR": str(place)}
    key, secret = {"SESSIOND_KEY": "k"}, {"WEBHOOK_SECRET": "x"}
    runs: list[tuple[str, tuple[str, ...], dict[str, str]]] = [
        ("sessiond", ("--check",), {**state, "SESSIOND_AGENT_COMMAND": "x"}),
        ("sessiond", ("--check",), {**state, "SESSIOND_PORT": "many"}),
        ("sessiond", ("--check",), {**state, "SESSIOND_KEYS_FILE": "/none"}),
        ("sessiond", ("--help",), {}),
        ("webhook", ("--check",), secret),
        ("webhook", ("--check",), {}),
        ("webhook", ("--help",), {}),
        ("handler", (), {"RUN_TTL": "x"}),
        ("poster", (), {"POSTER_PACE": "x"}),
        ("worker", (), {}),
        ("worker", ("nothing",), key),
        ("sessionctl", ("nothing",), {}),
    ]
    run = Commands(Mask(**{"the-directory": str(place)}))
    made = all_of(*(lambda one=one: commanded(one[0], *one[1], cwd=place, **one[2]) for one in runs))
    for (name, words, _), answer in zip(runs, made, strict=True):
        if "--help" in words:
            flags = sorted(set(FLAG.findall(answer[1].partition("options:")[2])))
            run.facts.append({"status": answer[0], "options": flags})
        else:
            run(lambda *_, answer=answer: answer, *words, columns=False)
        run.facts[-1]["command"] = " ".join((name, *words))
    golden.put("processes", run.facts)


class Seen(dict[str, str]):
    """An environment that notes which variables are asked for."""

    def __init__(self, **given: str) -> None:
        super().__init__(given)
        self.names: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)

    def __getitem__(self, name: str) -> str:
        self.names.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self.names.add(str(name))
        return super().__contains__(name)


READERS: Mapping[str, tuple[Callable[[Any], Any], tuple[Mapping[str, str], ...]]] = {
    "sessiond": (sessiond_settings.from_env, ({},)),
    "webhook": (webhook_settings.from_env, ({"WEBHOOK_SECRET": "x"}, {})),
    "handler": (handler_settings.from_env, ({},)),
    "poster": (poster_settings.poster_settings, ({},)),
    "worker": (worker_settings.from_env, ({"SESSIOND_KEY": "x"}, {})),
    "task": (worker_commands.redis_url, ({},)),
    "up": (up.settings_from, ({},)),
}
"""The functions that read settings, with environments in which they get as far as can be."""
WITHOUT_ARGUMENT: Mapping[str, Callable[[], Any]] = {
    "metrics": lambda: load(read_metrics, os.environ),
    "hooks": lambda: fault_points.hold("x"),
    "client": lambda: client_module.connect(),
    "sessionctl send": lambda: sessionctl.main(["send", str(payloads.DATA / "ping.json"), "--event", "ping"]),
    "sessionctl status": lambda: sessionctl.main(["status", "--url", "http://127.0.0.1:1"]),
    "sessionctl task add": lambda: sessionctl.main(["task", "add", "octo/hello", "A title"]),
}
"""The same of functions that read the process's own environment."""


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    golden, found = Golden(GOLDENS / "environment"), {}
    for name, (reader, environs) in READERS.items():
        names: set[str] = set()
        for environ in environs:
            seen = Seen(**environ)
            with contextlib.suppress(SettingsError):
                reader(seen)
            names |= seen.names
        found[name] = sorted(names)
    for name, work in WITHOUT_ARGUMENT.items():
        seen = Seen(REDIS_URL="redis://127.0.0.1:1/0")
        with monkeypatch.context() as patched:
            patched.setattr(os, "environ", seen)
            work()
        found[name] = sorted(name for name in seen.names if not name.startswith(("LANG", "LC_", "COLUMNS", "LINES")))
    for name in ("handler", "poster", "worker"):
        found[name] = sorted({*found[name], *found["metrics"]})
    golden.put("variables", found)
    golden.check()


def test_openapi() -> None:
    golden = Golden(GOLDENS / "openapi")
    golden.put("document", without_prose(openapi.document()))
    golden.check()


def without_prose(value: Any, key: str = "") -> Any:
    """The document with what people read masked."""
    if isinstance(value, dict):
        return {name: without_prose(one, name) for name, one in value.items()}
    if isinstance(value, list):
        return [without_prose(one, key) for one in value]
    return SENTENCE if key in ("description", "summary") and isinstance(value, str) else value
