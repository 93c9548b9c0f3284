"""The record of one turn, as JSON in Redis and as callers see it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from sessiond.agent.state import TurnOutcome, TurnOver
from sessiond.lock.rules import Kind
from sessiond_common.clock import now_text

HIDDEN: Final = frozenset({"prompt_sha256", "turn"})
"""Fields that callers do not see."""
RESULT_FIELDS: Final = ("outcome", "text", "reason", "usage", "cost_usd", "conversation")


class TurnState(StrEnum):
    """The states of a turn."""

    ACCEPTED = "accepted"
    STARTED = "started"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRecord:
    """One turn, from its acceptance on. All times are RFC 3339.

    `fence`, `ticket` and `kind` are those of the lease under which the turn was accepted. `conversation` is
    `{id, generation, fresh}`. The fields from `outcome` on are set when the turn closes.
    """

    id: str
    fence: int
    ticket: str
    kind: Kind
    key: str | None = None
    attempt: int = 1
    """The number of the attempt under the turn's key, from 1."""
    state: TurnState = TurnState.ACCEPTED
    uuid: str = ""
    """The id of the user line that is written to the agent."""
    model: str = ""
    prompt_sha256: str = ""
    accepted_at: str = ""
    conversation: Mapping[str, Any]
    started_at: str | None = None
    outcome: TurnOutcome | None = None
    text: str = ""
    reason: str | None = None
    usage: Mapping[str, Any] | None = None
    cost_usd: float | None = None
    """US dollars."""
    closed_at: str | None = None

    @property
    def closed(self) -> bool:
        """Whether the turn is over."""
        return self.state is TurnState.CLOSED

    def started(self) -> "TurnRecord":
        """Return the record of the turn that starts now."""
        return replace(self, state=TurnState.STARTED, started_at=now_text())

    def ended(self, end: TurnOver, conversation: Mapping[str, Any]) -> "TurnRecord":
        """Return the record of the turn that closes now."""
        return replace(
            self, state=TurnState.CLOSED, outcome=end.outcome, text=end.text, reason=end.reason,
            usage=dict(end.usage), cost_usd=end.cost_usd, conversation=conversation, closed_at=now_text(),
        )  # fmt: skip

    def stored(self) -> dict[str, Any]:
        """Return the JSON object that Redis holds."""
        found: dict[str, Any] = {
            "id": self.id, "turn": self.id, "key": self.key, "attempt": self.attempt, "state": self.state.value,
            "fence": self.fence, "ticket": self.ticket, "kind": self.kind.value, "uuid": self.uuid,
            "model": self.model, "prompt_sha256": self.prompt_sha256, "accepted_at": self.accepted_at,
            "conversation": self.conversation,
        }  # fmt: skip
        if self.started_at is not None:
            found["started_at"] = self.started_at
        if self.closed:
            found |= {
                "outcome": self.outcome and self.outcome.value, "text": self.text, "reason": self.reason,
                "usage": self.usage, "cost_usd": self.cost_usd, "closed_at": self.closed_at,
            }  # fmt: skip
        return found

    def view(self) -> dict[str, Any]:
        """Return the record as callers see it, its fields in alphabetical order."""
        return {
            name: value for name, value in sorted(self.stored().items()) if name not in HIDDEN and value is not None
        }

    def result(self) -> dict[str, Any]:
        """Return the `result` event of the closed turn."""
        stored = self.stored()
        shown = {name: stored.get(name) for name in RESULT_FIELDS}
        return {"turn": self.id, **{n: value for n, value in shown.items() if value is not None or n == "text"}}


def decode_turn(data: Mapping[str, Any]) -> TurnRecord:
    """Return the record of a stored JSON object.

    Raises:
        KeyError, ValueError: the object is not the record of a turn.
    """
    outcome = data.get("outcome")
    return TurnRecord(
        id=data.get("id") or data["turn"], fence=data["fence"], ticket=data.get("ticket", ""), kind=Kind(data["kind"]),
        key=data.get("key"), attempt=data.get("attempt", 1), state=TurnState(data["state"]), uuid=data.get("uuid", ""),
        model=data.get("model", ""), prompt_sha256=data.get("prompt_sha256", ""),
        accepted_at=data.get("accepted_at", ""), conversation=data.get("conversation") or {},
        started_at=data.get("started_at"), outcome=TurnOutcome(outcome) if outcome is not None else None,
        text=data.get("text", ""), reason=data.get("reason"), usage=data.get("usage"), cost_usd=data.get("cost_usd"),
        closed_at=data.get("closed_at"),
    )  # fmt: skip
