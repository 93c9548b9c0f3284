"""One session of the crash matrix: its callers, their answers, and the checks after a crash."""

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from sessiond.client import Client, LeaseLost, ProblemError, TicketEnded, Turn, TurnResult, Unavailable
from sessiond.verify import verify
from support.servers import Sessiond, eventually

Answer = dict[str, Any]
CALL_SECONDS = 40.0


class BackgroundCall:
    """A call in its own thread. Afterwards it has an `answer` or an `error`."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.answer: Any = None
        self.error: Exception | None = None
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.answer = self._work()
        except Exception as error:
            self.error = error

    @property
    def answered(self) -> bool:
        """Whether the call succeeded."""
        self.end()
        return self.error is None

    def end(self) -> None:
        self._thread.join(CALL_SECONDS)
        assert not self._thread.is_alive(), "the call got no answer"

    @property
    def outcome(self) -> str:
        """The answer in one word: the turn's outcome, `done`, or the error type."""
        match self.error:
            case None:
                return getattr(self.answer, "outcome", "done")
            case Unavailable(type=kind) | ProblemError(type=kind):
                return kind
        return repr(self.error)


class Scene:
    """The callers of one session. The name of a ticket is its key. Only `retry` repeats a call."""

    def __init__(self, service: Sessiond, session: str) -> None:
        self.service, self.session = service, session
        self.client: Client = service.client()
        self.ids: dict[str, str] = {}
        self.secrets: dict[str, str] = {}
        """The secret of each ticket's last lease, by the ticket's name."""
        self.shown: dict[int, tuple[str, str]] = {}
        """The secret and the holder of each fence that a caller received."""
        self.posts: Counter[str] = Counter()
        self.calls: list[BackgroundCall] = []
        self.wrong: list[str] = []

    # ---- calls

    def _call(self, method: str, path: str, body: Any = None, secret: str | None = None, timeout: float = 30) -> Any:
        answer = self.client.transport.call(
            method, path, session=self.session, body=body, secret=secret, timeout=timeout
        )
        return answer.body

    def take(self, name: str, kind: str = "handler") -> str:
        ticket = self._call("POST", "/tickets", {"kind": kind, "key": name})["id"]
        before = self.ids.setdefault(name, ticket)
        if before != ticket:
            self.wrong.append(f"{name} was {before}, and is {ticket}")
        return str(ticket)

    def wait(self, name: str, seconds: float = 0, holder: str = "") -> Answer:
        """Wait once, and record the lease if it is granted."""
        return self.wait_on(self.ids[name], seconds, holder or f"h-{name}", name)

    def wait_on(self, ticket: str, seconds: float, holder: str, name: str = "") -> Answer:
        body = {"holder": holder, "wait": seconds}
        found: Answer = self._call("POST", f"/tickets/{ticket}/wait", body, timeout=seconds + 20)
        if found["state"] == "granted":
            self._record_lease(found["lease"], holder, name or ticket)
        return found

    def _record_lease(self, lease: Answer, holder: str, name: str) -> None:
        fence, secret = int(lease["fence"]), str(lease["secret"])
        if fence in self.shown and self.shown[fence] != (secret, holder):
            self.wrong.append(f"fence {fence} was shown twice: {holder}, before {self.shown[fence][1]}")
        if fence not in self.shown and self.shown and fence < max(self.shown):
            self.wrong.append(f"fence {fence} is shown after {max(self.shown)}")
        if any(secret == other for at, (other, _) in self.shown.items() if at != fence):
            self.wrong.append(f"the secret of fence {fence} is another's")
        self.shown[fence] = (secret, holder)
        self.secrets[name] = secret

    def renew(self, name: str) -> Answer:
        found: Answer = self._call("POST", "/lease/renew", {}, self.secrets[name])
        return found

    def release(self, name: str) -> None:
        self._call("DELETE", "/lease", secret=self.secrets[name])

    def withdraw(self, name: str) -> None:
        self._call("DELETE", f"/tickets/{self.ids[name]}", {})

    def force(self, fence: int) -> None:
        self.client.force_release(self.session, fence, "a test")

    def turn(self, name: str, prompt: str, key: str | None = None) -> TurnResult:
        """Run one turn to its end."""
        self.posts[prompt] += 1
        body = {"prompt": prompt, "key": key}
        transport = self.client.transport
        stream = transport.stream("POST", "/turns", session=self.session, body=body, secret=self.secrets[name])
        return Turn(transport, self.session, stream, lambda _: None).result()

    def cancel(self, name: str, turn: str) -> None:
        self._call("DELETE", f"/turns/{turn}", secret=self.secrets[name])

    def lease(self, name: str, kind: str = "handler") -> None:
        """Take a ticket, wait for its lease, and claim it."""
        self.take(name, kind)
        assert self.wait(name, 20)["state"] == "granted"
        self.renew(name)

    # ---- background calls and retries

    def start_call(self, work: Callable[..., Any], *args: Any) -> BackgroundCall:
        call = BackgroundCall(lambda: work(*args))
        self.calls.append(call)
        return call

    def retry(self, work: Callable[..., Any], *args: Any) -> Any:
        """Make a call, and repeat it while the service is unavailable."""
        ends = time.monotonic() + CALL_SECONDS
        while True:
            try:
                return work(*args)
            except Unavailable:
                if time.monotonic() > ends:
                    raise
                time.sleep(0.05)

    def open_wait(self, name: str) -> http.client.HTTPConnection:
        """Start a wait on a connection that the test can close."""
        connection = http.client.HTTPConnection("127.0.0.1", self.service.port, timeout=30)
        headers = {"Authorization": f"Bearer {self.service.keys['admin']}", "Content-Type": "application/json"}
        path = f"/v1/sessions/{self.session}/tickets/{self.ids[name]}/wait"
        connection.request("POST", path, json.dumps({"holder": f"h-{name}", "wait": 60}), headers)
        self.wait_until(lambda: self.ticket(name)["present"])
        return connection

    # ---- reads

    def wait_until(self, check: Callable[[], Any]) -> Any:
        return eventually(lambda: self.retry(check), CALL_SECONDS, lambda: f"{self.session}: {self.service.log_text()}")

    def view(self) -> Answer:
        return self.client.view(self.session)

    def ticket(self, name: str) -> Answer:
        return self.client.ticket(self.session, self.ids[name])

    def ledger(self) -> list[Answer]:
        return self.client.ledger(self.session)

    def count_events(self, event: str) -> int:
        return sum(entry["event"] == event for entry in self.retry(self.ledger))

    def wait_for_turn(self) -> None:
        """Wait until a turn runs."""
        self.wait_until(lambda: self.count_events("turn-started") and self.view()["turn"])

    def ended(self, name: str) -> str:
        """Return why the ticket has ended, or an empty text while it lives."""
        try:
            self.retry(self.ticket, name)
        except TicketEnded as over:
            return over.reason
        return ""

    def lost(self, name: str) -> str:
        """Return why the lease was lost, or an empty text while it lives."""
        try:
            self.retry(self.renew, name)
        except LeaseLost as lost:
            return lost.reason
        return ""

    def sent(self, prompt: str) -> int:
        """Return how often an agent received this prompt."""
        files = (self.service.state / "claude").glob("projects/scripted/*.jsonl")
        return sum(json.loads(line) == prompt for file in files for line in file.read_text().splitlines())

    # ---- checks

    def check(self) -> None:
        """Check the ledger, the secrets and the agent's files. Add each error to `wrong`."""
        self.wrong += [str(v) for v in verify(self.retry(self.ledger)).violations]
        for prompt, posts in self.posts.items():
            if self.sent(prompt) > posts:
                self.wrong.append(f"{prompt!r} was posted {posts} times and sent {self.sent(prompt)} times")
        renewed = [fence for fence, (secret, _) in self.shown.items() if self._is_alive(secret)]
        if len(renewed) > 1:
            self.wrong.append(f"the leases {renewed} all live")

    def _is_alive(self, secret: str) -> bool:
        try:
            self.retry(self._call, "POST", "/lease/renew", {}, secret)
        except ProblemError:
            return False
        return True

    def drain(self) -> int:
        """Grant the lock to each remaining ticket in order, and run a turn with the last one.

        Returns the number of tickets.
        """
        view = self.wait_until(lambda: (now := self.view())["draining"] is None and now["turn"] is None and now)
        left = [(t["id"], t["kind"], t["holder"]) for t in view["queue"]]
        held = view["holder"]
        if held is not None:
            worker = held["kind"] == "worker"
            left.insert(len(left) if worker else 0, (held["ticket"], held["kind"], held["holder"]))
        handlers_first = sorted(left, key=lambda one: one[1] == "worker")
        for number, (ticket, _, holder) in enumerate(handlers_first):
            self._serve(ticket, holder or "drain", handlers_first[number + 1 :])
        after = self.retry(self.view)
        if after["queue"] or after["holder"] or after["draining"]:
            self.wrong.append(f"not drained: {after}")
        return len(left)

    def _serve(self, ticket: str, holder: str, behind: list[tuple[str, str, str | None]]) -> None:
        assert self.retry(self.wait_on, ticket, CALL_SECONDS, holder)["state"] == "granted", ticket
        for other, _, who in behind:
            assert self.retry(self.wait_on, other, 0, who or "drain")["state"] == "waiting", f"{other} before {ticket}"
        if not behind:  # only one turn in each session, because a turn may need an agent
            prompt = f"drain {ticket}"
            result = self.retry(self.turn, ticket, prompt)
            if (result.outcome, self.sent(prompt)) != ("completed", 1):
                self.wrong.append(f"{result} sent {self.sent(prompt)} times")
        self.retry(self.release, ticket)
