"""Scenes of the service as a whole: refused requests, the board, ownership, crashes and outages."""

import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from support.goldens.exchanges import Reader, headers_of, without_common
from support.goldens.records import log_lines, log_shapes
from support.goldens.sessiond_recorder import LONG_PROMPT, RecordedSessiond, Scene
from support.servers import Redis

UNKNOWN_TICKET = "tk-" + "0" * 32


def refuse_requests(service: RecordedSessiond) -> None:
    """sessiond refuses invalid and unauthorized requests."""
    s = service.scene("refused")
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
    h("GET", f"~/tickets/{UNKNOWN_TICKET}")
    h("POST", f"~/tickets/{UNKNOWN_TICKET}/wait", {"holder": "h"})
    h("GET", f"~/turns/tu-{'0' * 32}")
    h("DELETE", f"~/turns/tu-{'0' * 32}")
    h("GET", "~/turns?key=none")
    h("GET", "~/turns")
    h("GET", "~/ledger?after=x")
    h("PUT", "~/tickets", {})
    h("GET", "/v1/sessions/oc!to/hello")
    s.write_facts()


def read_board(service: RecordedSessiond) -> None:
    """Read the board: its files, its sign-in and its stream."""
    s = service.scene("board")
    h = s.http
    for path in ("/", "/board/board.css", "/board/board.js", "/board/none"):
        h("GET", path, role=None)
    tag = h.ask("GET", "/", role=None).headers["ETag"]
    h("GET", "/", role=None, If_None_Match=tag)
    h("GET", "/v1/board", role=None)
    h("POST", "/v1/board/sign-in", {"key": "wrong"}, role=None)
    signed = h("POST", "/v1/board/sign-in", {"key": service.server.keys["viewer"]}, role=None)
    cookie = signed.headers["Set-Cookie"].partition(";")[0]
    h("GET", "/v1/board?session=noslash", role=None, Cookie=cookie)
    h("GET", "/v1/board", role=None, Cookie="sessiond_board=1.x")
    h("POST", "/v1/board/sign-out", {}, role=None, Cookie=cookie)
    s.take_ticket("z", "worker")
    path = f"/v1/board?session={s.session}"
    answer = h.ask("GET", path, role=None, stream=True, Cookie=cookie, Accept="text/event-stream")
    done = threading.Event()
    reader = Reader(answer, lambda events: done.is_set())

    def events(name: str) -> list[Any]:
        return [e["data"] for e in reader.events if e["event"] == name]

    s.wait_until(lambda: events("hello"))
    ticket = s.acquire("a")
    s.wait_until(lambda: any(d["holder"] for d in events("detail")))
    snapshot = h.ask("GET", path, role="viewer").json()
    s.call("DELETE", "~/lease", "a")
    s.wait_until(lambda: any(v.get("ended") or v.get("ended_at") for d in events("handoffs") for v in d["handoffs"]))
    done.set()
    held = [d for d in events("detail") if d["holder"]][-1]
    mine = {"hello": events("hello")[0], "picture": snapshot}
    for found in mine.values():
        found["sessions"] = [row for row in found["sessions"] if row["session"] == s.session]
    last = {name: events(name)[-1] for name in ("session", "handoffs")}
    service.golden.put("board.stream", s.mask.value({**mine, "detail": held, **last, "headers": headers_of(answer)}))
    s.http("GET", f"~/tickets/{ticket}")
    s.write_facts()


def fill_board(service: RecordedSessiond) -> None:
    """Open more board streams than sessiond accepts."""
    s = service.scene("board-full")
    head = f"GET /v1/board HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.server.keys['viewer']}\r\n"
    with ExitStack() as viewers:
        accepted = True
        while accepted:
            link = viewers.enter_context(socket.create_connection(("127.0.0.1", service.server.port), timeout=60))
            link.sendall(f"{head}Accept: text/event-stream\r\n\r\n".encode())
            accepted = b" 200 " in link.recv(65536)
        s.http("GET", "/v1/board")
    s.write_facts()


def fail_agent_start(service: RecordedSessiond) -> None:
    """The agent cannot start."""
    s = service.scene("agent-broken")
    s.acquire("h")
    s.run_turn("h", "hello")
    s.wait_for_event("agent-broken")
    s.run_turn("h", "hello")
    s.http("GET", "~")
    s.record_redis("broken")
    s.call("DELETE", "~/lease", "h")
    s.write_facts()


def call_other_instance(service: RecordedSessiond, start_other: Callable[[], RecordedSessiond]) -> None:
    """Call an instance that does not own the session.

    The other instance starts afterwards, because an instance takes over every session without an owner.
    """
    s = service.scene("not-owner")
    s.take_ticket("a")
    other = start_other()
    elsewhere = Scene(other, "not-owner", s.session)
    elsewhere.http("POST", "~/tickets", {"kind": "handler"})
    elsewhere.http("GET", "~")
    service.golden.put("elsewhere.http", without_common(elsewhere.http.facts, other.common))
    s.write_facts()


def kill_and_restart(service: RecordedSessiond) -> None:
    """sessiond is killed during a turn and starts again. Meanwhile the queue of another session becomes full."""
    s, full = service.scene("killed"), service.scene("queue-full")
    full.take_ticket("first")
    s.acquire("h")
    turn, _ = s.start_turn("h", LONG_PROMPT, key="t")
    service.server.kill9()
    service.records.redis.hset(f"sessiond:{{{full.session}}}:meta", "arrivals", 2**42 - 1)
    s.record_redis("killed")
    service.server.start()
    s.wait_for_event("turn-closed")
    s.http("GET", f"~/turns/{turn}")
    s.call("POST", "~/lease/renew", "h")
    s.run_turn("h", "#say again", key="t")
    s.call("DELETE", "~/lease", "h")
    s.write_facts()
    full.http("POST", "~/tickets", {"kind": "handler"})
    full.write_facts()


def read_broken_record(service: RecordedSessiond) -> None:
    """A turn record in Redis is not valid JSON."""
    s = service.scene("internal")
    s.take_ticket("a")
    turn = "tu-" + "1" * 32
    service.records.redis.set(f"sessiond:{{{s.session}}}:turn:{turn}", "no JSON")
    s.http("GET", f"~/turns/{turn}")
    s.write_facts()


OUTAGE_LOG_FIELDS = {f"error event level logger {session}timestamp" for session in ("session ", "")}
"""The fields of the log lines that sessiond repeats while Redis is away."""


def lose_redis(service: RecordedSessiond, redis_server: Redis) -> None:
    """Redis is down for a while."""
    s = service.scene("redis-away")
    s.acquire("h")
    queued = s.take_ticket("b")
    answer_wait = s.start_wait(queued, "h-2")
    stream = s.http.ask("GET", "~/ledger", stream=True, Accept="text/event-stream")
    reader = Reader(stream, lambda events: events[-1].get("event") == "problem")
    redis_server.kill9()
    answer_wait()
    s.http("POST", "~/tickets", {"kind": "handler"})
    s.http("GET", "/readyz", role=None)
    s.http("GET", "/v1/sessions/octo/never-seen")
    ended = reader.end()[-1]
    s.http.facts.append(
        {"call": "GET ~/ledger", "events": [s.mask.value(ended)], "headers": s.http.masked_headers(stream)}
    )
    s.wait_until(
        lambda: (
            {line["fields"] for line in log_shapes(log_lines(service.server.log_bytes().decode()))} >= OUTAGE_LOG_FIELDS
        )
    )
    redis_server.start()
    s.wait_until(lambda: s.http.ask("GET", "/readyz").status == 200)
    s.wait_until(lambda: s.http.ask("POST", "~/lease/renew", secret=s.secrets["h"]).status == 200)
    s.call("DELETE", "~/lease", "h")
    s.write_facts()


def stop_service(service: RecordedSessiond) -> None:
    """sessiond answers its waiters when it stops."""
    s = service.scene("stopping")
    s.acquire("h")
    queued = s.take_ticket("b")
    answer_wait = s.start_wait(queued, "h-2")
    service.server.terminate()
    answer_wait()
    s.write_facts()
