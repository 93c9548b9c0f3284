"""One turn on the holder's side: the agent's own lines, then exactly one result."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from sessiond.client.errors import SessiondError, Unavailable
from sessiond.client.responses import Stream
from sessiond.client.retry import Backoff
from sessiond.client.transport import Transport

POLL_SECONDS: Final = 0.5
MAX_OUTAGE: Final = 120.0
"""A wait for a turn's result fails when the server has been unavailable for this many seconds without a break."""


@dataclass(frozen=True, slots=True)
class AgentEvent:
    """A line of the agent, unchanged."""

    line: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The assistant's text in this line, empty for any other line."""
        if self.line.get("type") != "assistant":
            return ""
        blocks = (self.line.get("message") or {}).get("content") or []
        return "".join(b.get("text", "") for b in blocks if isinstance(b, dict) and b.get("type") == "text")


@dataclass(frozen=True, slots=True)
class Gap:
    """`lost` agent lines are missing because this reader was too slow. The result is never missing."""

    lost: int


@dataclass(frozen=True, slots=True)
class TurnResult:
    """The result of a turn. `outcome` is completed, cancelled, failed or lost."""

    turn: str
    outcome: str
    text: str = ""
    reason: str | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)
    cost_usd: float | None = None
    conversation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def completed(self) -> bool:
        return self.outcome == "completed"


Event = AgentEvent | Gap | TurnResult


def result_of(data: Mapping[str, Any], turn: str) -> TurnResult:
    """Return the result from the data of a `result` event, or of `GET /turns/{id}` for a closed turn."""
    return TurnResult(
        turn=str(data.get("turn") or turn),
        outcome=str(data["outcome"]),
        text=str(data.get("text") or ""),
        reason=data.get("reason"),
        usage=data.get("usage") or {},
        cost_usd=data.get("cost_usd"),
        conversation=data.get("conversation") or {},
    )


class Turn:
    """An accepted turn. Iterate over its events once; the last one is the TurnResult.

    A broken stream does not end the turn. This class then polls the turn until it is closed.
    """

    def __init__(
        self, transport: Transport, session: str, stream: Stream, on_result: Callable[[TurnResult], None]
    ) -> None:
        self._transport = transport
        self._session = session
        self._stream = stream
        self._on_result = on_result
        self.id = stream.headers.get("Turn-Id", "")
        self._result: TurnResult | None = None

    def __iter__(self) -> Iterator[Event]:
        if self._result is not None:
            yield self._result
            return
        try:
            yield from self._events()
        except Unavailable:
            pass
        finally:
            self._stream.close()
        if self._result is None:
            self._result = self._poll()
            self._on_result(self._result)
            yield self._result

    def _events(self) -> Iterator[Event]:
        for event in self._stream:
            if event is None:
                continue
            data = orjson.loads(event.data)
            if event.event == "agent":
                yield AgentEvent(data)
            elif event.event == "gap":
                yield Gap(int(data["lost"]))
            elif event.event == "result":
                self._result = result_of(data, self.id)
                self._on_result(self._result)
                yield self._result
                return

    def _poll(self) -> TurnResult:
        if not self.id:
            raise Unavailable("unreachable", "the turn's stream broke before its id was known")
        backoff = Backoff(MAX_OUTAGE)
        while True:
            try:
                body = self._transport.call("GET", f"/turns/{self.id}", session=self._session).body
            except Unavailable as failure:
                backoff.wait(failure)
                continue
            backoff.reset()
            if body.get("state") == "closed":
                return result_of(body, self.id)
            time.sleep(POLL_SECONDS)

    def result(self) -> TurnResult:
        """Read the turn to its end and return its result.

        Raises:
            SessiondError: the result cannot be found out.
        """
        for _ in self:
            pass
        if self._result is None:
            raise SessiondError("the turn ended without a result")
        return self._result
