"""The records of a session's turns: the open one, and what became of those before.

Changes are staged while a step is made and published once it is committed, so that a step that is
dropped leaves no trace. Results are told to a holder only after they are stored.
"""

import hashlib
import time
from collections.abc import Callable
from typing import Any

import orjson

from sessiond.agent import state as st
from sessiond.lock.events import Entry
from sessiond.problems import away
from sessiond.session import views
from sessiond.session.callers.waiters import TurnStream
from sessiond.store import codec
from sessiond.store.connection import Away
from sessiond.store.store import Behind, Store
from sessiond_common.clock import now_text


def digest(text: str) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def key_suffix(key: str) -> str:
    """Where a turn's key is remembered; hashed, because keys are any text."""
    return f"turnkey:{digest(key)}"


class TurnBook:
    """One session's turns. Used by the owner loop only, but for `read`, `find` and `find_key`.

    `doubt` is called when Redis gives no answer that counts.
    """

    def __init__(self, store: Store, doubt: Callable[[], None]) -> None:
        self._store, self._doubt = store, doubt
        self.open: dict[str, Any] | None = None
        self.stream: TurnStream | None = None
        self._staged: list[dict[str, Any]] = []
        self._riddle = False
        self._opening: TurnStream | None = None
        self._cause: float | None = None
        self._interrupt_at: float | None = None
        self._ack_at: float | None = None
        self._ack_late = False

    # ---- reading -----------------------------------------------------------------------------

    def read(self, suffix: str) -> dict[str, Any] | None:
        """A stored JSON object. Raises Problem redis-away."""
        text = self._get(suffix)
        return orjson.loads(text) if text else None

    def _get(self, suffix: str) -> str | None:
        try:
            return self._store.get(suffix)
        except (Away, Behind) as error:
            self._doubt()
            raise away() from error

    def find(self, turn: str) -> dict[str, Any] | None:
        """A turn's record by its id. One that is open in a Redis that lost its end, and here no more, is lost."""
        lives = turn in self._living()
        found = self.read(f"turn:{turn}")
        if found is None or found["state"] == "closed" or lives or turn in self._living():
            return found
        found = self.read(f"turn:{turn}")  # it may have begun and ended while it was read
        if found is None or found["state"] == "closed":
            return found
        return {**found, "state": "closed", "outcome": "lost", "text": "", "reason": "restored"}

    def _living(self) -> set[str]:
        return {turn["id"] for turn in (*self._staged, *([self.open] if self.open else []))}

    def find_key(self, key: str) -> dict[str, Any] | None:
        """The record of the last attempt under this key."""
        turn = self._get(key_suffix(key))
        return self.find(turn) if turn else None

    # ---- staging -----------------------------------------------------------------------------

    def load(self, stored: dict[str, Any] | None) -> None:
        """The open turn that an owner finds. Who reads it here is told its end; another turn's reader is, now."""
        self.unstage()
        if self.stream is not None and (stored is None or stored["id"] != self.stream.turn):
            self.abandon("refused-step")
        self.open = stored

    @property
    def current(self) -> dict[str, Any] | None:
        """The open turn, as the step in the making leaves it."""
        return self._staged[-1] if self._staged else self.open

    @property
    def opening(self) -> TurnStream:
        """The stream of the turn just accepted."""
        if self._opening is None:
            raise ValueError("no turn is being accepted")
        return self._opening

    def accept(self, turn: dict[str, Any]) -> list[codec.Command]:
        """Stages a new turn."""
        self._staged.append(turn)
        self._opening = TurnStream(turn["id"])
        commands = [codec.keep(f"turn:{turn['id']}", turn)]
        if turn["key"] is not None:
            commands.append(("SETEX", key_suffix(turn["key"]), str(codec.KEPT), turn["id"]))
        return commands

    def started(self, ledger: list[Entry]) -> list[codec.Command]:
        """Stages the open turn's start."""
        now = self.current
        if now is None:
            return []
        turn = {**now, "state": "started", "started_at": now_text()}
        self._staged.append(turn)
        ledger.append(("turn-started", {"turn": turn["id"]}))
        return [codec.keep(f"turn:{turn['id']}", turn), codec.put("open", {**turn, "turn": turn["id"]})]

    def over(self, end: st.TurnOver, ledger: list[Entry], conversation: dict[str, Any]) -> list[codec.Command]:
        """Stages the open turn's end."""
        now = self.current
        if now is None or now["id"] != end.turn:
            return []
        turn = {
            **now, "state": "closed", "outcome": end.outcome.value, "text": end.text, "reason": end.reason,
            "usage": dict(end.usage), "cost_usd": end.cost_usd, "conversation": conversation,
            "closed_at": now_text(),
        }  # fmt: skip
        self._staged.append(turn)
        entry: Entry = (
            "turn-closed",
            {
                "turn": turn["id"],
                "fence": turn["fence"],
                "kind": turn["kind"],
                "outcome": turn["outcome"],
                "reason": end.reason,
                "text_chars": len(end.text.strip()),
                **self._times(),
            },
        )
        # The ledger reads in the order of causes: closed, then drained, then the next grant.
        at = next((i for i, (event, _) in enumerate(ledger) if event == "drained"), len(ledger))
        ledger.insert(at, entry)
        return [codec.keep(f"turn:{turn['id']}", turn)]

    def _times(self) -> dict[str, Any]:
        if self._interrupt_at is None:
            return {}
        times = {"interrupt_to_closed_ms": (time.monotonic() - self._interrupt_at) * 1000}
        if self._ack_at is not None:
            times["interrupt_to_ack_ms"] = (self._ack_at - self._interrupt_at) * 1000
        if self._cause is not None:
            times["ticket_to_interrupt_ms"] = (self._interrupt_at - self._cause) * 1000
        found: dict[str, Any] = {name: round(ms, 2) for name, ms in times.items()}
        return found if self._ack_at is None else {**found, "ack_after_result": self._ack_late}

    def unstage(self, unknown: bool = False) -> None:
        """The step was dropped; or it is `unknown` whether it was, and nobody here will know any more."""
        self._riddle = unknown and any(turn["state"] == "closed" for turn in self._staged)
        self._staged, self._opening = [], None

    def publish(self) -> None:
        """The step is committed: its records are true, its result is told."""
        staged, self._staged = self._staged, []
        if self._opening is not None:
            self.stream, self._opening = self._opening, None
            self._interrupt_at = self._ack_at = self._cause = None
        for turn in staged:
            self.open = turn
            if turn["state"] == "closed":
                self.open = None
                if self.stream is not None:
                    self.stream.finish(views.result_event(turn))
                    self.stream = None

    # ---- while it runs -----------------------------------------------------------------------

    def feed(self, line: dict[str, Any] | None, size: int) -> None:
        """One of the agent's own lines, of so many bytes, for the open turn's reader; None for one to be missed."""
        if self.stream is not None:
            self.stream.feed(line, size)

    def interrupted(self, cause: float) -> None:
        """The first interrupt of the open turn was written just now; its cause came at `cause`."""
        if self._interrupt_at is None:
            self._interrupt_at, self._cause = time.monotonic(), cause

    def acked(self, after_result: bool) -> None:
        """The interrupt was acknowledged just now, before or after the turn's result."""
        if self._interrupt_at is not None and self._ack_at is None:
            self._ack_at, self._ack_late = time.monotonic(), after_result

    def abandon(self, reason: str) -> None:
        """The loop ends: a reader is told that its turn is lost (the next owner records it).

        One whose end is committed is told that end; one of which it is not known must ask the next owner.
        """
        ended = [turn for turn in self._staged if turn["state"] == "closed"]
        if self.stream is not None and self._riddle:
            self.stream.cut()
        elif self.stream is not None and ended:
            self.stream.finish(views.result_event(ended[-1]))
        elif self.stream is not None and self.open is not None:
            self.stream.finish({"turn": self.open["id"], "outcome": "lost", "text": "", "reason": reason})
        self.stream = None
