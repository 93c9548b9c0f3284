"""Runs one row of the fault table in its own session. Rows run side by side in one service."""

import re
import threading
import time
from collections.abc import Callable
from typing import Any

from sessiond.client import Lease, TurnResult, Unavailable
from sessiond.client.turns import result_of
from sessiond.verify import verify
from support.agent.fault_rows import CANCEL, FORCE, ITSELF, PREEMPT, RELEASE, TIMEOUT, Row
from support.servers import Sessiond, eventually

WAIT_SECONDS = 90.0
DRAIN = 2.0
"""The `drain_deadline` of rows in which it expires."""


class Scene:
    """Runs the row. Afterwards `wrong` lists the differences from the row's expectations."""

    def __init__(self, service: Sessiond, row: Row) -> None:
        self.service, self.row = service, row
        self.session = "faults/" + re.sub("[^a-z0-9]+", "-", f"{row.fault}-{row.when}".lower())
        self.place = service.state / "work" / self.session
        self.client = service.client()
        self.first_results: list[TurnResult] = []
        self.results = 0
        self.wrong: list[str] = []
        self.refused: str | None = None
        self.next: TurnResult | None = None
        self.entries: list[dict[str, Any]] = []

    def run(self) -> "Scene":
        """Run the row. Errors are recorded in `wrong` and never raised."""
        self.place.mkdir(parents=True)
        if self.row.faults:
            (self.place / "faults").write_text("\n".join(self.row.faults))
        try:
            self._first_and_next()
            self.entries = self.client.ledger(self.session)
            self._check()
        except Exception as error:
            self.wrong.append(f"{type(error).__name__}: {error}")
        return self

    # ---- the run -----------------------------------------------------------------------------

    def _first_and_next(self) -> None:
        leased: list[Lease] = []
        thread = threading.Thread(target=self._first, args=(leased,))
        thread.start()
        if self.row.end in (PREEMPT, RELEASE, CANCEL, FORCE):
            self._wait_for_moment(self.row.moment)
            self._end(leased[0])
        if self.row.end != PREEMPT:
            thread.join(WAIT_SECONDS)
        with self.client.lease(self.session, key="next", timeout=WAIT_SECONDS) as lease:
            self.next = self._next(lease)
        thread.join(WAIT_SECONDS)

    def _first(self, leased: list[Lease]) -> None:
        try:
            kind = "worker" if self.row.worker else "handler"
            with self.service.client().lease(self.session, kind=kind, key="first") as lease:
                leased.append(lease)
                body = {"prompt": self.row.prompt} | ({"timeout": 1} if self.row.end == TIMEOUT else {})
                stream = self.client.transport.stream(
                    "POST", "/turns", session=self.session, body=body, secret=lease.secret
                )
                for event in stream:
                    self.results += event is not None and event.event == "result"
                turn = stream.headers["Turn-Id"]
                self.first_results.append(result_of(self.client.turn(self.session, turn), turn))
                if self.row.release_at:
                    self._wait_for_moment(self.row.release_at)
        except Exception as error:
            self.wrong.append(f"first: {type(error).__name__}: {error}")

    def _wait_for_moment(self, moment: str) -> None:
        if moment.endswith(".mark"):
            eventually((self.place / moment).exists, WAIT_SECONDS, moment)
        elif moment in ("in_turn", "tasks"):
            eventually(lambda: self._view_has(moment), WAIT_SECONDS, moment)
        else:
            self._wait_for_event(moment)

    def _view_has(self, moment: str) -> bool:
        agent = self.client.view(self.session)["agent"]
        return bool(agent["tasks"]) if moment == "tasks" else agent["state"] == moment

    def _wait_for_event(self, event: str) -> None:
        after, ends = None, time.monotonic() + WAIT_SECONDS
        while time.monotonic() < ends:
            entries = self.client.ledger(self.session, after, wait=5)
            if any(e["event"] == event for e in entries):
                return
            after = entries[-1]["id"] if entries else after
        raise AssertionError(f"no {event}")

    def _end(self, lease: Lease) -> None:
        if self.row.end == RELEASE:
            self.client.transport.call("DELETE", "/lease", session=self.session, secret=lease.secret)
        elif self.row.end == CANCEL:
            turn = next(e["turn"] for e in self.client.ledger(self.session) if e["event"] == "turn-accepted")
            lease.cancel_turn(turn)
        elif self.row.end == FORCE:
            self.client.force_release(self.session, lease.fence, "stuck")

    def _next(self, lease: Lease) -> TurnResult:
        prompt = f"#say next of {self.session}"
        try:
            return lease.turn(prompt).result()
        except Unavailable as refused:
            if refused.type != "agent-broken":
                raise
            self.refused = refused.reason
        if not self.row.ends_by_backoff:
            self.client.restart_agent(self.session)
        return eventually(lambda: self._retry_turn(lease, prompt), WAIT_SECONDS, "the backoff ends")

    def _retry_turn(self, lease: Lease, prompt: str) -> TurnResult | None:
        try:
            return lease.turn(prompt).result()
        except Unavailable as refused:
            time.sleep(refused.retry_after or 1.0)
            return None

    # ---- the expectations --------------------------------------------------------------------

    def _is(self, what: str, found: Any, expected: Any) -> None:
        if found != expected:
            self.wrong.append(f"{what}: {str(found)[:200]!r}, expected {str(expected)[:200]!r}")

    def _check(self) -> None:
        self._check_first()
        row, following = self.row, self.next
        self._is("next", following and (following.outcome, following.text), ("completed", f"next of {self.session}"))
        self._check_broken()
        recoveries = [row.recovery] * row.times if row.recovery else []
        self._is("recoveries", [e["reason"] for e in self._all("recovery")], recoveries)
        self._is("refused steps", [e["detail"] for e in self._all("refused")], [])
        self._is("violations", verify(self.entries).violations, [])
        for wanted in self._why():
            if not any(wanted.items() <= entry.items() for entry in self.entries):
                self.wrong.append(f"not in the ledger: {wanted}")
        if row.recovery == "garbage":
            self._is("faults", len(self._all("fault")), self.row.times)
        if row.recovery == "drain-deadline":
            self._check_order()

    def _why(self) -> list[dict[str, Any]]:
        garbage = [{"event": "fault", "what": "garbage"}] if self.row.recovery == "garbage" else []
        stopping = [{"event": "agent-stopping", "why": self.row.recovery}] if self.row.recovery else []
        return [*self.row.why, *garbage, *stopping]

    def _check_first(self) -> None:
        row = self.row
        self._is("results in the stream", self.results, 1)
        if not self.first_results:
            self.wrong.append("the first turn has no end")
            return
        first = self.first_results[0]
        self._is("outcome", first.outcome, row.outcome)
        if not re.match(row.reason or "$", first.reason or ""):
            self.wrong.append(f"reason: {first.reason}, expected {row.reason}")
        self._is("text", first.text, row.text if row.outcome == "completed" else "")
        self._is("generation", first.conversation["generation"], row.generation)
        closed = [(e["outcome"], e["reason"]) for e in self._all("turn-closed") if e["turn"] == first.turn]
        self._is("turn-closed", closed, [(first.outcome, first.reason)])

    def _check_broken(self) -> None:
        """Check the 503 and its reason, unless this machine was so slow that the backoff was over before the turn."""
        broken = self._all("agent-broken")
        self._is("broken", [bool(re.match(self.row.broken or "$", e["why"])) for e in broken], [True] * len(broken))
        self._is("broken at all", len(broken), int(self.row.broken is not None))
        if self.refused is not None:
            self._is("refused", [self.refused], [e["why"] for e in broken])
        elif broken:
            asked = self._all("turn-accepted")[1]
            rested = (_ms(asked) - _ms(broken[0])) / 1000
            self._is("rested", rested >= broken[0]["rest_seconds"] - 0.1, True)

    def _check_order(self) -> None:
        """Check the order: stopped by the deadline, reaped, only then the next grant."""
        events = [(e["event"], e.get("why")) for e in self.entries]
        grants = [i for i, (event, _) in enumerate(events) if event == "granted"]
        order = [events.index(("agent-stopping", "drain-deadline")), events.index(("agent-reaped", "drain-deadline"))]
        self._is("order", [*order, grants[1]], sorted([*order, grants[1]]))
        self._is("in time", self._in_time(_ms(self.entries[order[0]])), True)
        if self.row.end not in (CANCEL, ITSELF):
            self._is("drained", [e["how"] for e in self._all("drained")], ["reaped"])

    def _in_time(self, stopped: int) -> bool:
        """Check the time. The deadline starts at the lease's end, the cancel, or claude's own end of the turn."""
        begins = {CANCEL: "interrupt", ITSELF: "turn-started", RELEASE: "turn-started"}.get(self.row.end, "ended")
        accepted, begun = (_ms(self._all(event)[0]) for event in ("turn-accepted", begins))
        return stopped - accepted > 1000 * DRAIN - 10 and stopped - begun < 2000 * DRAIN

    def _all(self, event: str) -> list[dict[str, Any]]:
        return [e for e in self.entries if e["event"] == event]

    # ---- the table ---------------------------------------------------------------------------

    def report(self, matrix: Callable[..., None]) -> None:
        """Add the row's actual results to the printed table."""
        first = self.first_results[0] if self.first_results else None
        ends = [f"{e['event']} {e.get('what') or e.get('exit')}" for e in self.entries
                if e["event"] in ("fault", "agent-reaped") and e.get("why") != "shutdown"]  # fmt: skip
        heard = [e["event"] for e in self.entries if e["event"] in ("foreign", "denied", "agent-broken", "drained")]
        why = dict.fromkeys([*ends, *heard])
        following = self.next.outcome if self.next else "none"
        refused = f"503, {'rest' if self.row.ends_by_backoff else 'restart'}, " if self.refused else ""
        matrix(
            "faults", fault=self.row.fault, when=self.row.when,
            first=f"{first.outcome} {first.reason or ''}"[:44] if first else "none",
            recovery=", ".join(e["reason"] for e in self._all("recovery")) or "none",
            next=refused + following,
            ledger=", ".join(why), as_said="; ".join(self.wrong)[:60] or "yes",
        )  # fmt: skip


def _ms(entry: dict[str, Any]) -> int:
    """Return the time at which Redis stored the entry, in milliseconds."""
    return int(entry["id"].partition("-")[0])
