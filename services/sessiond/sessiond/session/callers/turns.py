"""The turns of a session: the open one and its reader, and the stored records of all of them.

A step stages its changes and publishes them once it is committed, so that a dropped step leaves no trace. A holder
gets a result only after it is stored.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import orjson

from sessiond.agent import state as st
from sessiond.lock.events import Entry
from sessiond.problems import away
from sessiond.session.callers.turn_record import TurnRecord, TurnState, decode_turn
from sessiond.session.callers.turn_stream import TurnStream
from sessiond.store import codec
from sessiond.store.connection import RedisUnavailable
from sessiond.store.store import Behind, Store


def digest(text: str) -> str:
    """Return the SHA-256 of a text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def key_suffix(key: str) -> str:
    """Return the Redis key suffix under which a turn's key is stored. Keys are any text, so they are hashed."""
    return f"turnkey:{digest(key)}"


class InterruptTimes:
    """The times of the open turn's interrupt, for the figures of a preemption."""

    def __init__(self) -> None:
        self._cause: float | None = None
        self._written_at: float | None = None
        self._acked_at: float | None = None
        self._ack_after_result = False

    def written(self, cause: float) -> None:
        """Record that the turn's first interrupt was written now. Its cause arrived at `cause`."""
        if self._written_at is None:
            self._written_at, self._cause = time.monotonic(), cause

    def acked(self, after_result: bool) -> None:
        """Record that the agent acknowledged the interrupt now, before or after the turn's result."""
        if self._written_at is not None and self._acked_at is None:
            self._acked_at, self._ack_after_result = time.monotonic(), after_result

    def until_closed(self) -> dict[str, Any]:
        """Return the figures of a turn that closes now, in milliseconds; nothing for one without an interrupt."""
        if self._written_at is None:
            return {}
        times = {"interrupt_to_closed_ms": (time.monotonic() - self._written_at) * 1000}
        if self._acked_at is not None:
            times["interrupt_to_ack_ms"] = (self._acked_at - self._written_at) * 1000
        if self._cause is not None:
            times["ticket_to_interrupt_ms"] = (self._written_at - self._cause) * 1000
        found: dict[str, Any] = {name: round(ms, 2) for name, ms in times.items()}
        return found if self._acked_at is None else {**found, "ack_after_result": self._ack_after_result}


class Turns:
    """One session's turns. Other greenlets than the owner loop may only call `read`, `find` and `find_key`."""

    def __init__(self, store: Store, doubt: Callable[[], None]) -> None:
        """`doubt` is called when Redis does not answer or lost writes."""
        self._store, self._doubt = store, doubt
        self.open: TurnRecord | None = None
        self.stream: TurnStream | None = None
        self.interrupt = InterruptTimes()
        self._staged: list[TurnRecord] = []
        self._staged_stream: TurnStream | None = None
        self._outcome_unknown = False

    # ---- reading -----------------------------------------------------------------------------

    def read(self, suffix: str) -> dict[str, Any] | None:
        """Return a stored JSON object.

        Raises:
            Problem: `redis-away`.
        """
        text = self._get(suffix)
        return orjson.loads(text) if text else None

    def _get(self, suffix: str) -> str | None:
        try:
            return self._store.get(suffix)
        except (RedisUnavailable, Behind) as error:
            self._doubt()
            raise away() from error

    def find(self, turn: str) -> TurnRecord | None:
        """Return a turn's record by its id.

        If a turn is stored as open but this owner knows that it is over, Redis lost the write of its end. Such a turn
        is returned as lost.

        Raises:
            Problem: `redis-away`.
        """
        open_before = self._is_open(turn)
        found = self._record(turn)
        if found is None or found.closed or open_before or self._is_open(turn):
            return found
        found = self._record(turn)  # the turn may have begun and ended during the first read
        if found is None or found.closed:
            return found
        return replace(found, state=TurnState.CLOSED, outcome=st.TurnOutcome.LOST, text="", reason="restored")

    def _record(self, turn: str) -> TurnRecord | None:
        found = self.read(f"turn:{turn}")
        return decode_turn(found) if found is not None else None

    def _is_open(self, turn: str) -> bool:
        return any(record.id == turn for record in (*self._staged, *([self.open] if self.open else [])))

    def find_key(self, key: str) -> TurnRecord | None:
        """Return the record of the last attempt under this key.

        Raises:
            Problem: `redis-away`.
        """
        turn = self._get(key_suffix(key))
        return self.find(turn) if turn else None

    # ---- staging -----------------------------------------------------------------------------

    def load(self, stored: Mapping[str, Any] | None) -> None:
        """Take over the open turn that is stored. Its reader is kept; the reader of another turn is answered `lost`."""
        self.unstage()
        record = decode_turn(stored) if stored is not None else None
        if self.stream is not None and (record is None or record.id != self.stream.turn):
            self.abandon("refused-step")
        self.open = record

    @property
    def current(self) -> TurnRecord | None:
        """The open turn, as the step in progress leaves it."""
        return self._staged[-1] if self._staged else self.open

    def accept(self, turn: TurnRecord) -> tuple[TurnStream, list[codec.RedisCommand]]:
        """Stage a new turn. Returns its stream, and the commands that store it."""
        self._staged.append(turn)
        self._staged_stream = TurnStream(turn.id)
        commands = [_store(turn)]
        if turn.key is not None:
            commands.append(("SETEX", key_suffix(turn.key), str(codec.KEPT), turn.id))
        return self._staged_stream, commands

    def start(self, ledger: list[Entry]) -> list[codec.RedisCommand]:
        """Stage the open turn's start and add its ledger entry. Returns the commands that store it."""
        if self.current is None:
            return []
        turn = self.current.started()
        self._staged.append(turn)
        ledger.append(("turn-started", {"turn": turn.id}))
        return [_store(turn), codec.put("open", turn.stored())]

    def end(self, end: st.TurnOver, ledger: list[Entry], conversation: Mapping[str, Any]) -> list[codec.RedisCommand]:
        """Stage the open turn's end and add its ledger entry. Returns the commands that store it."""
        now = self.current
        if now is None or now.id != end.turn:
            return []
        turn = now.ended(end, conversation)
        self._staged.append(turn)
        entry: Entry = (
            "turn-closed",
            {
                "turn": turn.id,
                "fence": turn.fence,
                "kind": turn.kind.value,
                "outcome": end.outcome.value,
                "reason": end.reason,
                "text_chars": len(end.text.strip()),
                **self.interrupt.until_closed(),
            },
        )
        # The ledger has the order of causes: closed, then drained, then the next grant.
        at = next((i for i, (event, _) in enumerate(ledger) if event == "drained"), len(ledger))
        ledger.insert(at, entry)
        return [_store(turn)]

    def unstage(self, unknown: bool = False) -> None:
        """Drop the staged changes. `unknown` means that the step may have been committed."""
        self._outcome_unknown = unknown and any(turn.closed for turn in self._staged)
        self._staged, self._staged_stream = [], None

    def publish(self) -> None:
        """Apply the staged changes, because their step is committed, and give the reader the result."""
        staged, self._staged = self._staged, []
        if self._staged_stream is not None:
            self.stream, self._staged_stream = self._staged_stream, None
            self.interrupt = InterruptTimes()
        for turn in staged:
            self.open = turn
            if turn.closed:
                self.open = None
                if self.stream is not None:
                    self.stream.finish(turn.result())
                    self.stream = None

    # ---- the reader --------------------------------------------------------------------------

    def feed(self, line: dict[str, Any] | None, size: int) -> None:
        """Give one of the agent's own lines, of `size` bytes, to the open turn's reader; None counts as lost."""
        if self.stream is not None:
            self.stream.feed(line, size)

    def abandon(self, reason: str) -> None:
        """Answer the reader, because the loop ends: its turn is lost, and the next owner records that.

        If the turn's end is committed, the reader gets that end. If that is unknown, its stream ends without a
        result, and it must ask the next owner.
        """
        ended = [turn for turn in self._staged if turn.closed]
        if self.stream is not None and self._outcome_unknown:
            self.stream.cut()
        elif self.stream is not None and ended:
            self.stream.finish(ended[-1].result())
        elif self.stream is not None and self.open is not None:
            self.stream.finish({"turn": self.open.id, "outcome": "lost", "text": "", "reason": reason})
        self.stream = None


def _store(turn: TurnRecord) -> codec.RedisCommand:
    return codec.keep(f"turn:{turn.id}", turn.stored())
