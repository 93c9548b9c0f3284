"""The board over real HTTP: access, the cookie, the stream, and its load."""

import hashlib
import json
import re
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import urllib3

from sessiond.client import Client
from sessiond.http.app import create_app
from sessiond.http.board import signin
from sessiond.http.keys import parse
from support.servers import Redis, Sessiond, eventually, scripted_env

SESSION = "octo/hello"
OPEN = {"/v1/board/sign-in", "/v1/board/sign-out"}
"""POSTs that need no key. Each has its own test."""
HOSTILE = '<img src=x onerror="alert(1)">&amp;<script>alert(2)</script>\u202e\u2028'
Ask = Callable[..., Any]
Start = Callable[..., Sessiond]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sessiond]:
    redis = Redis()
    made = Sessiond(redis.url, Path(tmp_path_factory.mktemp("board")) / "state", scripted_env())
    yield made
    made.close()
    redis.close()


def requester(service: Sessiond) -> Ask:
    pool = urllib3.PoolManager(retries=False, maxsize=8)

    def call(method: str, path: str, body: Any = None, cookie: str | None = None, **headers: str) -> Any:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        sent |= {"Cookie": cookie} if cookie else {}
        more = {} if body is None else {"json": body}
        return pool.request(method, service.url + path, headers=sent, **more)

    return call


@pytest.fixture(scope="module")
def ask(service: Sessiond) -> Ask:
    return requester(service)


def cookie_of(ask: Ask, key: str = "viewer-key") -> str:
    answer = ask("POST", "/v1/board/sign-in", {"key": key})
    assert answer.status == 204, answer.data
    return str(answer.headers["Set-Cookie"].partition(";")[0])


class Stream:
    """An open stream of the board. A thread reads it."""

    def __init__(self, service: Sessiond, cookie: str, session: str | None = SESSION) -> None:
        path = f"/v1/board?session={session}" if session else "/v1/board"
        self.answer = urllib3.PoolManager(retries=False).request(
            "GET", service.url + path, preload_content=False, timeout=urllib3.Timeout(30),
            headers={"Cookie": cookie, "Accept": "text/event-stream"},
        )  # fmt: skip
        assert self.answer.connection is not None
        self._socket = self.answer.connection.sock
        self.events: list[tuple[str, Any]] = []
        self.ended = threading.Event()
        self._more = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        rest = b""
        try:
            for some in self.answer.stream(65536):
                *found, rest = (rest + some).split(b"\n\n")
                with self._more:
                    for one in filter(None, found):
                        name, data = re.fullmatch(rb"event: (\w+)\ndata: (.*)", one, re.DOTALL).groups()  # type: ignore[union-attr]
                        self.events.append((name.decode(), json.loads(data)))
                    self._more.notify_all()
        except (urllib3.exceptions.HTTPError, OSError, ValueError):
            pass
        self.ended.set()

    def wait(self, name: str, fits: Callable[[Any], bool] = lambda _: True, seconds: float = 10) -> Any:
        """Wait up to `seconds` for an event of this name that `fits`, and return its data."""

        def found() -> list[Any]:
            return [data for event, data in self.events if event == name and fits(data)]

        with self._more:
            assert self._more.wait_for(lambda: bool(found()), seconds), (name, self.events)
            return found()[0]

    def handoffs(self) -> list[dict[str, Any]]:
        """Return all received leases, merged as the page merges them."""
        leases = {}
        for event, data in list(self.events):
            for lease in (data["handoffs"] or []) if event in ("hello", "handoffs") else []:
                leases[lease["fence"]] = lease
        return [leases[fence] for fence in sorted(leases)]

    def close(self) -> None:
        """Disconnect."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self.answer.close()


@pytest.fixture
def stream() -> Iterator[Callable[..., Stream]]:
    with ExitStack() as stack:

        def start(*args: Any, **more: Any) -> Stream:
            made = Stream(*args, **more)
            stack.callback(made.close)
            return made

        yield start


def take_leases(client: Client, *keys: str, session: str = SESSION) -> None:
    for key in keys:
        with client.lease(session, kind="handler", key=key):
            pass


# ---- headers and files -------------------------------------------------------------------------


def test_the_page_loads_nothing_from_other_hosts_and_cannot_be_framed(ask: Ask) -> None:
    page = ask("GET", "/")
    assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    html = page.data.decode()
    files = re.findall(r'(?:src|href)="(/board/[^"]+)"', html)
    assert len(set(files)) >= 3
    for path in ("/", *files, "/v1/board", "/nowhere"):
        headers = ask("GET", path).headers
        policy = dict(part.strip().partition(" ")[::2] for part in headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == "'self'" and policy["frame-ancestors"] == "'none'"
        assert not {"script-src", "style-src", "connect-src", "img-src"} & policy.keys()
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=|https?://", html)


def test_scripts_name_no_other_host_and_build_no_markup(ask: Ask) -> None:
    seen, todo = set(), ["/board/board.js"]
    while todo:
        path = todo.pop()
        seen.add(path)
        found = ask("GET", path)
        assert (found.status, found.headers["Content-Type"]) == (200, "text/javascript; charset=utf-8"), path
        text = found.data.decode()
        assert not re.search(
            r"https?://|innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|setAttribute\(\"style", text
        )
        todo += [f"/board/{name}" for name in re.findall(r'from "\./([\w.]+)"', text) if f"/board/{name}" not in seen]
    assert len(seen) >= 4


def test_an_unchanged_file_is_not_sent_again(ask: Ask) -> None:
    tag = ask("GET", "/board/board.css").headers["ETag"]
    assert ask("GET", "/board/board.css", If_None_Match=tag).status == 304
    for path in ("/board/nothing.js", "/board/..%2fapp.py", "/board/%2e%2e/app.py"):
        assert ask("GET", path).status == 404


# ---- sign-in -----------------------------------------------------------------------------------


def test_the_cookie_contains_no_key_and_is_hidden_from_scripts(ask: Ask) -> None:
    answer = ask("POST", "/v1/board/sign-in", {"key": "viewer-key"})
    value, *flags = answer.headers["Set-Cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Strict", "Path=/v1/board"} <= set(flags)
    assert "Secure" not in flags
    assert "viewer" not in value and hashlib.sha256(b"viewer-key").hexdigest() not in value
    encrypted = ask("POST", "/v1/board/sign-in", {"key": "viewer-key"}, X_Forwarded_Proto="https")
    assert "Secure" in encrypted.headers["Set-Cookie"].split("; ")
    token = value.partition("=")[2]
    assert ask("GET", "/v1/board", Authorization=f"Bearer {token}").status == 401


def test_sign_in_needs_a_known_key_as_json(ask: Ask) -> None:
    cookie = cookie_of(ask)
    for sent, status in (({"key": "wrong"}, 401), ({}, 400), ({"key": cookie.partition("=")[2]}, 401)):
        answer = ask("POST", "/v1/board/sign-in", sent, cookie=cookie)
        assert (answer.status, "Set-Cookie" in answer.headers) == (status, False), sent
    form = ask("POST", "/v1/board/sign-in", Content_Type="application/x-www-form-urlencoded")
    assert form.status in (400, 415)


def test_sign_out_deletes_the_cookie(ask: Ask) -> None:
    answer = ask("POST", "/v1/board/sign-out", {}, cookie=cookie_of(ask))
    value, *flags = answer.headers["Set-Cookie"].split("; ")
    assert (answer.status, value) == (204, "sessiond_board=")
    assert {"Max-Age=0", "HttpOnly", "SameSite=Strict", "Path=/v1/board"} <= set(flags)


def test_a_changed_or_expired_cookie_opens_nothing(ask: Ask) -> None:
    cookie = cookie_of(ask)
    name, _, token = cookie.partition("=")
    until, _, mac = token.partition(".")
    assert ask("GET", "/v1/board", cookie=cookie).status == 200
    for other in (
        f"{int(until) + 1}.{mac}",
        f"1.{mac}",
        until,
        f"{until}.",
        f"{until}.{mac[:-1]}0{mac[-1]}",
        "",
        "x.y",
        "é.é",
    ):
        answer = ask("GET", "/v1/board", cookie=f"{name}={other}")
        assert (answer.status, answer.json()["type"]) == (401, "unauthorized"), other


def test_a_cookie_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    client = create_app(None, parse(f"v viewer {hashlib.sha256(b'k').hexdigest()}"), b"secret").test_client()  # type: ignore[arg-type]
    monkeypatch.setattr(signin, "LIFE", -1)
    given = client.post("/v1/board/sign-in", json={"key": "k"}).headers["Set-Cookie"].partition(";")[0]
    answer = client.get("/v1/board", headers={"Cookie": given})
    assert (answer.status_code, answer.json) == (401, {**(answer.json or {}), "type": "unauthorized"})


def routes() -> list[tuple[str, str]]:
    """Return every (method, path) of the application, so that the tests include new ones."""
    app = create_app(None, parse(""), b"secret")  # type: ignore[arg-type]
    return sorted((m, rule.rule) for rule in app.url_map.iter_rules() for m in rule.methods or () if m != "HEAD")


def filled(path: str) -> str:
    found = re.sub(r"[<{]owner[>}]", "octo", re.sub(r"[<{]repo[>}]", "hello", path))
    return re.sub(r"[<{](ticket|turn)[>}]", lambda m: f"t{'k' if m[1] == 'ticket' else 'u'}-{'0' * 32}", found)


def test_the_document_has_every_route() -> None:
    app = create_app(None, parse(""), b"secret")  # type: ignore[arg-type]
    served = json.loads(app.test_client().get("/openapi.json").data)["paths"]
    documented = {(method.upper(), path) for path, calls in served.items() for method in calls}
    assert {(m, re.sub(r"<(\w+)>", r"{\1}", path)) for m, path in routes()} == documented


def test_the_cookie_cannot_change_anything(ask: Ask, service: Sessiond) -> None:
    """An admin's cookie is no exception: a cookie can only read the board."""
    changing = [(m, filled(path)) for m, path in routes() if m != "GET" and path not in OPEN]
    assert len(changing) >= 10
    for key in ("admin-key", "viewer-key"):
        cookie = cookie_of(ask, key)
        secret = cookie.partition("=")[2]
        for method, path in changing:
            for more in ({}, {"Lease_Secret": secret}, {"Authorization": f"Bearer {secret}"}):
                answer = ask(method, path, {"kind": "handler"}, cookie=cookie, **more)
                assert answer.status in (401, 403), (method, path, more)
    assert service.client().sessions() == []


def test_the_cookie_opens_no_other_get(ask: Ask) -> None:
    cookie = cookie_of(ask)
    public = {"/", "/healthz", "/readyz", "/metrics", "/openapi.json", "/board/<name>"}
    for method, path in routes():
        if method == "GET" and path not in public | {"/v1/board"}:
            assert ask("GET", filled(path), cookie=cookie).status == 401, path


def test_a_key_sees_only_the_sessions_of_its_patterns(
    sessiond: Start, stream: Callable[..., Stream], tmp_path: Path
) -> None:
    place = tmp_path / "a"
    service = sessiond(scripted_env())
    service.terminate()
    line = f"some viewer {hashlib.sha256(b'some-key').hexdigest()} octo/* acme/one\n"
    (place / "keys").write_text((place / "keys").read_text() + line)
    service.start()
    ask, client = requester(service), service.client()
    cookie = cookie_of(ask, "some-key")
    take_leases(client, "a", session="octo/hello")
    take_leases(client, "b", session="acme/two")
    shown = ask("GET", "/v1/board", cookie=cookie).json()["sessions"]
    assert [row["session"] for row in shown] == ["octo/hello"]
    forbidden = ask("GET", "/v1/board?session=acme/two", cookie=cookie)
    assert (forbidden.status, forbidden.json()["type"]) == (403, "forbidden")
    open_stream = stream(service, cookie, session=None)
    open_stream.wait("hello")
    client.take("acme/two")
    client.take("acme/three")
    client.take("acme/one")
    open_stream.wait("session", lambda row: row["session"] == "acme/one")
    assert "acme/t" not in json.dumps(open_stream.events)


def test_removing_a_key_invalidates_its_cookies_and_a_restart_does_not(sessiond: Start, tmp_path: Path) -> None:
    service = sessiond(scripted_env())
    ask = requester(service)
    cookies = {role: cookie_of(ask, f"{role}-key") for role in ("viewer", "admin")}
    service.terminate()
    assert (tmp_path / "a" / "board-secret").stat().st_mode & 0o777 == 0o600
    lines = (tmp_path / "a" / "keys").read_text().splitlines(keepends=True)
    (tmp_path / "a" / "keys").write_text("".join(one for one in lines if not one.startswith("viewer")))
    service.start()
    assert ask("GET", "/v1/board", cookie=cookies["admin"]).status == 200
    assert ask("GET", "/v1/board", cookie=cookies["viewer"]).status == 401


# ---- the stream --------------------------------------------------------------------------------


def test_the_stream_reports_changes(service: Sessiond, ask: Ask, stream: Callable[..., Stream]) -> None:
    client = service.client()
    take_leases(client, "before")
    open_stream = stream(service, cookie_of(ask))
    hello = open_stream.wait("hello")
    assert (hello["selected"], hello["detail"]["holder"], hello["service"]["ready"]) == (SESSION, None, True)
    with client.lease(SESSION, kind="handler", key=HOSTILE, holder=HOSTILE) as lease:
        held = open_stream.wait("detail", lambda d: d["holder"])["holder"]
        assert (held["fence"], held["kind"], held["key"], held["holder"]) == (lease.fence, "handler", HOSTILE, HOSTILE)
        assert held["since"].endswith("Z")
        client.take(SESSION, kind="worker", key="waits")
        client.take(SESSION, kind="handler", key="first")
        queue = open_stream.wait("detail", lambda d: len(d["queue"]) == 2)["queue"]
        assert [(t["key"], t["position"]) for t in queue] == [("first", 1), ("waits", 2)]
        assert queue[1]["why"] == [
            {"why": "absent"}, {"why": "holds", "kind": "handler"}, {"why": "handlers-first", "count": 1},
        ]  # fmt: skip
        row = open_stream.wait("session", lambda r: r["waiting"] == {"handler": 1, "worker": 1})
        assert row["holder"]["kind"] == "handler"
    open_stream.wait("handoffs", lambda h: any(x["why"] == "released" and x["key"] == HOSTILE for x in h["handoffs"]))
    for ticket in client.view(SESSION)["queue"]:
        client.withdraw(SESSION, ticket["id"])
    granted = [e["fence"] for e in client.ledger(SESSION) if e["event"] == "granted"]
    assert [lease["fence"] for lease in open_stream.handoffs()] == granted
    assert "secret" not in json.dumps(open_stream.events)


def test_the_last_hundred_leases_are_read_from_a_long_ledger(service: Sessiond, ask: Ask) -> None:
    client, session = service.client(), "octo/long"
    take_leases(client, *(f"k{n}" for n in range(130)), session=session)
    shown = ask("GET", f"/v1/board?session={session}", cookie=cookie_of(ask)).json()["handoffs"]
    assert [lease["key"] for lease in shown] == [f"k{n}" for n in range(30, 130)]
    assert {lease["why"] for lease in shown} == {"released"}


def test_watching_an_unused_session_does_not_create_it_and_shows_it_once_it_is_used(
    service: Sessiond, ask: Ask, stream: Callable[..., Stream]
) -> None:
    open_stream = stream(service, cookie_of(ask), session="octo/new")
    assert open_stream.wait("hello")["detail"] is None
    assert "octo/new" not in json.dumps(service.client().sessions())
    take_leases(service.client(), "one", session="octo/new")
    open_stream.wait("detail", lambda d: d["session"] == "octo/new")
    open_stream.wait("handoffs", lambda h: [x["key"] for x in h["handoffs"]] == ["one"])


def test_a_stream_ends_with_the_service_and_the_next_one_is_complete(
    sessiond: Start, stream: Callable[..., Stream]
) -> None:
    service = sessiond(scripted_env())
    cookie = cookie_of(requester(service))
    take_leases(service.client(), "a", "b")
    before = stream(service, cookie)
    eventually(lambda: len(before.handoffs()) == 2)
    service.terminate()
    assert before.ended.wait(1)
    assert before.events[-1][0] == "problem" and before.events[-1][1]["type"] == "stopping"
    service.start()
    after = stream(service, cookie)
    take_leases(service.client(), "c")
    eventually(lambda: [lease["key"] for lease in after.handoffs()] == ["a", "b", "c"])


def test_a_viewer_that_disconnects_frees_its_place(service: Sessiond, ask: Ask, stream: Callable[..., Stream]) -> None:
    """Open more streams one after the other than may be open at once. Each ends before its first heartbeat."""
    cookie = cookie_of(ask)
    for _ in range(10):
        streams = [stream(service, cookie, session=None) for _ in range(40)]
        for one in streams:
            assert one.answer.status == 200
            one.wait("hello")
        for one in streams:
            one.close()


def test_a_full_board_does_not_slow_other_calls(service: Sessiond, ask: Ask, stream: Callable[..., Stream]) -> None:
    """The number of viewers is limited, and a renew is as fast with all of them as with none."""
    cookie, client = cookie_of(ask), service.client()

    def renews(secret: str) -> float:
        found = []
        for n in range(60):
            begun = time.perf_counter()
            assert (
                ask(
                    "POST", "/v1/sessions/octo/busy/lease/renew", Lease_Secret=secret, Authorization="Bearer admin-key"
                ).status
                == 200
            )
            found.append(time.perf_counter() - begun)
            if n % 10 == 0:
                client.take("octo/busy", key=f"n{time.monotonic_ns()}")
        return statistics.median(found)

    ticket = ask("POST", "/v1/sessions/octo/busy/tickets", {"kind": "handler"}, Authorization="Bearer admin-key").json()
    wait = f"/v1/sessions/octo/busy/tickets/{ticket['id']}/wait"
    granted = ask("POST", wait, {"holder": "h", "wait": 5}, Authorization="Bearer admin-key").json()
    secret = granted["lease"]["secret"]
    alone = renews(secret)
    first = stream(service, cookie, session="octo/busy")
    streams = [stream(service, cookie, session="octo/busy") for _ in range(255)]
    for one in streams:
        one.wait("hello")
    full = ask("GET", "/v1/board", cookie=cookie)
    assert (full.status, full.json()["type"]) == (503, "board-full") and "Retry-After" in full.headers
    crowded = renews(secret)
    first.wait("detail", lambda d: len(d["queue"]) >= 10)
    print(f"renew, median: {alone * 1000:.2f} ms alone, {crowded * 1000:.2f} ms with 256 streams")
    assert crowded < max(0.03, alone * 6)
