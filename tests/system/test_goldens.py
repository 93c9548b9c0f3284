"""The services' outward behaviour, compared with recorded files.

Covered: HTTP answers, server-sent events, ledger entries, Redis records, metrics, log fields, commands, environment
variables. `RECORD_GOLDENS=1 pytest tests/system/test_goldens.py` records the files in `goldens/` anew.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from servers import Redis, Sessiond, eventually, scripted_env
from support.goldens import (
    Answer,
    Golden,
    Http,
    Mask,
    Reader,
    Records,
    headers_of,
    told,
    without_common,
)

GOLDENS = Path(__file__).parent / "goldens"
GHOST = "tk-" + "0" * 32
LONG = "#tokens 100000\n#pace 20ms"
JSON_LOGS = {"SESSIOND_LOG_FORMAT": "json"}

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


SCENES: tuple[Callable[[Service], None], ...] = (released,)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def test_sessiond(redis_server: Redis, tmp_path: Path, stack: ExitStack) -> None:
    golden, records = Golden(GOLDENS / "sessiond"), Records(redis_server.url)

    def start(name: str, **times: float) -> Service:
        service = Sessiond(redis_server.url, tmp_path / name, {**scripted_env(**times), **JSON_LOGS})
        stack.callback(service.close)
        common = headers_of(Http(service.url, service.keys, Mask()).ask("GET", "/nowhere"))
        return Service(service, records, golden, {k: v for k, v in common.items() if k != "Content-Type"})

    calm = start("calm")
    for scene in SCENES:
        scene(calm)
    golden.check()
