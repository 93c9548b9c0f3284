"""Record what one sessiond does in a scene: its HTTP answers, ledger entries and Redis records."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from support.goldens.exchanges import Answer, Http, Reader, without_common
from support.goldens.files import Golden
from support.goldens.mask import Mask
from support.goldens.records import Records, masked_ledger
from support.servers import Sessiond, eventually

SERVICE_ENV = {
    **dict.fromkeys(("LANG", "LC_ALL"), "C.UTF-8"), "TZ": "UTC", "TERM": "dumb", "NOT_FOR_THE_AGENT": "x",
    **dict.fromkeys((
        "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL", "ANTHROPIC_MODEL", "CLAUDE_CODE_OAUTH_TOKEN",
        "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE",
        "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "SCRIPTED_FAULTS",
    ), "x"),
}  # fmt: skip
"""Environment variables of sessiond. The agent receives some of them."""

LONG_PROMPT = "#tokens 100000\n#pace 20ms"
"""A prompt whose turn runs until something cancels it."""


class RecordedSessiond:
    """A running sessiond and the golden files of its scenes.

    `common` are the headers that every answer has.
    """

    def __init__(self, server: Sessiond, records: Records, golden: Golden, common: dict[str, str]) -> None:
        self.server, self.records, self.golden, self.common = server, records, golden, common
        self.pool = ThreadPoolExecutor(8)

    def scene(self, name: str) -> "Scene":
        """Return a scene with its own session."""
        return Scene(self, name)


class Scene:
    """One session: its HTTP calls, its Redis records at named moments, and its ledger."""

    def __init__(self, service: RecordedSessiond, name: str, session: str = "") -> None:
        self.service, self.name, self.session = service, name, session or f"octo/{name}"
        self.mask = Mask(**{"the-state-directory": str(service.server.state)})
        self.http = Http(service.server.url, service.server.keys, self.mask, self.session)
        self.moments: dict[str, Any] = {}
        self.secrets: dict[str, str] = {}

    def take_ticket(self, name: str, kind: str = "handler", **more: Any) -> str:
        """Take a ticket and return its id."""
        return str(self.http("POST", "~/tickets", {"kind": kind, "key": name, **more}).body["id"])

    def wait(self, ticket: str, holder: str, seconds: float = 30) -> Answer:
        """Wait on a ticket until sessiond answers."""
        path, body = f"~/tickets/{ticket}/wait", {"holder": holder, "wait": seconds}
        return self._remember_secret(self.http("POST", path, body), holder)

    def start_wait(self, ticket: str, holder: str, seconds: float = 60, **more: Any) -> Callable[[], Answer]:
        """Start a wait in the background. The returned function records and returns its answer."""
        path, body = f"~/tickets/{ticket}/wait", {"holder": holder, "wait": seconds}
        answer: Future[Any] = self.service.pool.submit(self.http.ask, "POST", path, body, **more)
        self.wait_until(
            lambda: any(t["id"] == ticket and t["holder"] == holder and t["present"] for t in self.view()["queue"])
        )
        return lambda: self._remember_secret(self.http.record("POST", path, body, answer.result(60), **more), holder)

    def _remember_secret(self, answer: Answer, holder: str) -> Answer:
        if answer.status == 200 and answer.body["state"] == "granted":
            self.secrets[holder] = answer.body["lease"]["secret"]
        return answer

    def acquire(self, name: str, kind: str = "handler") -> str:
        """Take a ticket, wait for its lease and return the ticket's id. The holder has the ticket's name."""
        ticket = self.take_ticket(name, kind)
        assert self.wait(ticket, name).body["state"] == "granted"
        return ticket

    def call(self, method: str, path: str, holder: str, body: Any = None, **more: Any) -> Answer:
        """Record a call with the holder's lease secret."""
        return self.http(method, path, body, secret=self.secrets[holder], **more)

    def run_turn(self, holder: str, prompt: str, **more: Any) -> Answer:
        """Run a turn until its result."""
        return self.call("POST", "~/turns", holder, {"prompt": prompt, **more})

    def start_turn(self, holder: str, prompt: str, **more: Any) -> tuple[str, Callable[[], Answer]]:
        """Start a turn. Return its id, and a function that records its stream when the turn has ended."""
        count = self.count_events("turn-started")
        secret, body = self.secrets[holder], {"prompt": prompt, **more}
        answer = self.http.ask("POST", "~/turns", body, secret=secret, stream=True)
        reader = Reader(answer, lambda events: events[-1].get("event") == "result")
        self.wait_until(lambda: self.count_events("turn-started") > count)

        def record() -> Answer:
            reader.end()
            answer.read_data = reader.data
            return self.http.record("POST", "~/turns", body, answer, secret=secret)

        return str(answer.headers["Turn-Id"]), record

    def view(self) -> Any:
        return self.http.ask("GET", "~").json()

    def ledger(self) -> list[dict[str, Any]]:
        return self.service.records.ledger(self.session)

    def count_events(self, event: str) -> int:
        return sum(entry["event"] == event for entry in self.ledger())

    def wait_until(self, check: Callable[[], Any]) -> Any:
        return eventually(check, 40, lambda: f"{self.name}: {self.service.server.log_text()}")

    def wait_for_event(self, event: str, times: int = 1) -> None:
        """Wait until the ledger has this event `times` times and the view shows its version."""
        self.wait_until(lambda: self.count_events(event) >= times)
        version = int(self.ledger()[-1]["version"])
        self.wait_until(lambda: self.view()["version"] >= version)

    def record_redis(self, name: str) -> None:
        """Record the session's Redis keys as they are now, under this name."""
        self.moments[name] = self.service.records.dump(self.mask, f"sessiond:{{{self.session}}}:*")

    def write_facts(self) -> None:
        """Put everything recorded into the golden files."""
        facts = {
            "http": without_common(self.http.facts, self.service.common),
            "ledger": masked_ledger(self.mask, self.ledger()),
            "redis": self.moments,
        }
        for kind, found in facts.items():
            if found:
                self.service.golden.put(f"{self.name}.{kind}", found)


class IdleStreams:
    """Streams of a turn, a ledger and the board while nothing happens. sessiond sends heartbeats on them."""

    def __init__(self, service: RecordedSessiond) -> None:
        self.scene = s = service.scene("beats")
        s.acquire("w", "worker")
        self._place = service.server.state / "work" / s.session
        _, self._record_turn = s.start_turn("w", "#at text until=go\n#say late")
        last = s.http.ask("GET", "~/ledger?count=5000").json()["next"]
        self._ledger = s.http.ask("GET", f"~/ledger?after={last}", stream=True, Accept="text/event-stream")
        self._reader = Reader(self._ledger, lambda events: events[-1].get("comment") == "beat")
        board = s.http.ask("GET", "/v1/board", stream=True, Accept="text/event-stream")
        self._board = Reader(board, lambda events: events[-1].get("event") == "beat")

    def end(self) -> None:
        s = self.scene
        idle = self._reader.end()
        (self._place / "go").touch()
        self._record_turn()
        facts = [e for e in idle if "comment" in e]
        s.http.facts.append(
            {"call": "GET ~/ledger?after=<entry>", "events": facts, "headers": s.http.masked_headers(self._ledger)}
        )
        s.http.facts.append({"call": "GET /v1/board", "events": [s.mask.value(self._board.end()[-1])], "headers": {}})
        s.call("DELETE", "~/lease", "w")
        s.write_facts()
