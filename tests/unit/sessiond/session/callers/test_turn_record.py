"""A turn record: the JSON object in Redis at each state, and the part that callers see."""

from typing import Any, Final

import pytest

from sessiond.agent.state import TurnOutcome, TurnOver
from sessiond.lock.rules import Kind
from sessiond.session.callers.turn_record import TurnRecord, decode_turn

CONVERSATION: Final = {"id": "c", "generation": 1, "fresh": True}
ACCEPTED: Final = TurnRecord(
    id="tu-1", fence=7, ticket="tk-1", kind=Kind.WORKER, key="k", attempt=2, uuid="u", model="m", prompt_sha256="d",
    accepted_at="2030-01-01T00:00:00.000Z", conversation=CONVERSATION,
)  # fmt: skip
STORED: Final[dict[str, Any]] = {
    "id": "tu-1", "turn": "tu-1", "key": "k", "attempt": 2, "state": "accepted", "fence": 7, "ticket": "tk-1",
    "kind": "worker", "uuid": "u", "model": "m", "prompt_sha256": "d", "accepted_at": "2030-01-01T00:00:00.000Z",
    "conversation": CONVERSATION,
}  # fmt: skip
END: Final = TurnOver("tu-1", TurnOutcome.COMPLETED, "done", usage={"input_tokens": 3}, cost_usd=0.5)


def without_times(record: TurnRecord) -> dict[str, Any]:
    return {name: value for name, value in record.stored().items() if name not in ("started_at", "closed_at")}


def test_the_stored_record_has_the_fields_of_its_state() -> None:
    started = ACCEPTED.started()
    closed = started.ended(END, {**CONVERSATION, "fresh": False})
    assert ACCEPTED.stored() == STORED
    assert without_times(started) == {**STORED, "state": "started"}
    assert without_times(closed) == {
        **STORED, "state": "closed", "conversation": {**CONVERSATION, "fresh": False}, "outcome": "completed",
        "text": "done", "reason": None, "usage": {"input_tokens": 3}, "cost_usd": 0.5,
    }  # fmt: skip
    assert {"started_at", "closed_at"} <= closed.stored().keys()
    assert "started_at" not in ACCEPTED.ended(END, CONVERSATION).stored()


@pytest.mark.parametrize(
    "record", [ACCEPTED, ACCEPTED.started(), ACCEPTED.ended(END, CONVERSATION), ACCEPTED.started().ended(END, {})]
)
def test_a_stored_record_is_read_back_unchanged(record: TurnRecord) -> None:
    assert decode_turn(record.stored()) == record


def test_a_record_that_is_not_a_turn_raises_an_error() -> None:
    with pytest.raises(KeyError):
        decode_turn({"turn": "tu-1"})
    with pytest.raises(ValueError, match="unheard-of"):
        decode_turn({**STORED, "state": "unheard-of"})


def test_callers_see_neither_empty_fields_nor_the_digest_of_the_prompt() -> None:
    view = ACCEPTED.ended(TurnOver("tu-1", TurnOutcome.LOST, reason="restored"), CONVERSATION).view()
    assert list(view) == sorted(view)
    assert not {"prompt_sha256", "turn", "cost_usd"} & view.keys()
    assert (view["outcome"], view["reason"], view["text"]) == ("lost", "restored", "")


def test_a_result_always_has_a_text_and_other_fields_only_if_they_are_set() -> None:
    lost = ACCEPTED.ended(TurnOver("tu-1", TurnOutcome.LOST, reason="gone"), CONVERSATION).result()
    assert lost == {
        "turn": "tu-1", "outcome": "lost", "text": "", "reason": "gone", "usage": {}, "conversation": CONVERSATION,
    }  # fmt: skip
