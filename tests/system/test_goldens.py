"""The services' outward behaviour, compared with recorded files.

Covered: HTTP answers, server-sent events, ledger entries, Redis records, metrics, log fields, commands, environment
variables. `RECORD_GOLDENS=1 pytest tests/system/test_goldens.py` records the files in `goldens/` anew.
"""

import http.client
import json
import re
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from sessiond import problems as sessiond_problems
from support.goldens import (
    Answer,
    Golden,
    Http,
    Mask,
    Reader,
    Records,
    headers_of,
    log_lines,
    metrics_of,
    shapes,
    told,
    without_common,
)
from support.servers import Redis, Sessiond, eventually, scripted_env

GOLDENS = Path(__file__).parent / "goldens"
GHOST = "tk-" + "0" * 32
LONG = "#tokens 100000\n#pace 20ms"
CALM = {
    "lease_ttl": 300,
    "claim_window": 100,
    "head_wait": 100,
    "poll_grace": 100,
    "drain_deadline": 60,
    "absence": 300,
}

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
    s.turn("h", LONG, key="t", timeout=1)
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
            "environ": sorted(name for name in environ if not name.startswith(("LC_", "LANG", "TERM", "TZ", "SSL_"))),
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
    s.lease("z")
    ahead, behind = s.take("a"), s.take("b")
    s.wait(ahead, "absent", 0)
    s.happened("absent")
    s.happened("back")
    s.call("DELETE", "~/lease", "z")
    s.wait(behind, "h")
    s.happened("back", 2)
    s.http("GET", f"~/tickets/{ahead}")
    s.call("DELETE", "~/lease", "h")
    s.http("DELETE", f"~/tickets/{ahead}")
    s.end()


def too_old(stage: Service) -> None:
    """A ticket on which nobody ever waits: lapsed, then ended."""
    s = stage.scene("too-old")
    handler = s.take("a")
    s.happened("lapsed")
    s.http("GET", f"~/tickets/{handler}")
    s.happened("ticket-ended")
    s.http("GET", f"~/tickets/{handler}")
    s.moment("everything is over")
    s.end()


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


def not_owner(stage: Service, other: Service) -> None:
    """A session that another instance owns."""
    s = stage.scene("not-owner")
    s.take("a")
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
    doomed_redis = Redis()
    stack.callback(doomed_redis.close)
    services: list[Sessiond] = []
    stack.callback(lambda: all_of(*(service.close for service in services)))

    def start(name: str, *faults: str, redis: Redis = redis_server, **times: float) -> Service:
        env = {**scripted_env(*faults, **{**CALM, **times}), "SESSIOND_LOG_FORMAT": "json", "SESSIOND_MAX_AGENTS": "20"}
        service = Sessiond(redis.url, place / name, env)
        services.append(service)
        common = headers_of(Http(service.url, service.keys, Mask()).ask("GET", "/nowhere"))
        without = {name: value for name, value in common.items() if name != "Content-Type"}
        return Service(service, Records(redis.url), golden, without)

    calm, hasty, limited, absent, mute, doomed = all_of(
        lambda: start("calm"),
        lambda: start("hasty", lease_ttl=0.5),
        lambda: start("limited", max_hold=3, drain_deadline=0.3),
        lambda: start("absent", claim_window=0.3, absence=0.4, ticket_ttl=2, head_wait=0.3, poll_grace=0.2),
        lambda: start("mute", "exit-start=3"),
        lambda: start("doomed", redis=doomed_redis, owner_ttl=3, owner_renew=0.5, owner_doubt=2),
    )
    beats = Beats(calm)
    all_of(
        lambda: [scene(calm) for scene in SCENES],
        lambda: expired(hasty),
        lambda: held_too_long(limited),
        lambda: [scene(absent) for scene in (lost_thrice, passed_over, too_old)],
        lambda: broken(mute),
        lambda: [killed(doomed), internal(doomed), redis_away(doomed, doomed_redis), stopping(doomed)],
    )
    not_owner(calm, hasty)
    beats.end()
    text = Http(calm.service.url, {}, Mask()).ask("GET", "/metrics", role=None).data.decode()
    golden.put("metrics", metrics_of(text, counted))
    golden.put("logs", shapes(line for service in services for line in log_lines(service.log_bytes().decode())))
    check_provoked(golden, sessiond_problems.KINDS, NOT_PROVOKED)
    golden.check()


def all_of(*works: Callable[[], Any]) -> list[Any]:
    """All of this at once; the answers, in order."""
    with ThreadPoolExecutor(len(works)) as pool:
        return [asked.result() for asked in [pool.submit(work) for work in works]]


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
