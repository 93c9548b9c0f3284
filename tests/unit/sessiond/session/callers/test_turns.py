"""The reader of an open turn gets one result, even if the owner reloads the stored state meanwhile."""

from dataclasses import replace

import pytest

from sessiond.agent import state as st
from sessiond.lock.rules import Kind
from sessiond.session.callers.turn_record import TurnRecord
from sessiond.session.callers.turn_stream import StreamItem, TurnStream
from sessiond.session.callers.turns import Turns
from sessiond.store.store import Store

TURN = TurnRecord(
    id="tu-1", fence=1, ticket="tk-1", kind=Kind.WORKER, conversation={"id": "c", "generation": 1, "fresh": False}
)


def opened() -> tuple[Turns, TurnStream]:
    turns = Turns(Store("redis://127.0.0.1:1", "o/r", "i"), lambda: None)  # no test here calls Redis
    turns.accept(TURN)
    turns.publish()
    assert turns.stream is not None
    return turns, turns.stream


def ended(stream: TurnStream) -> StreamItem:
    stream.close()
    assert stream.finished, "the stream must end, otherwise its reader waits forever"
    (item,) = list(stream)
    return item


def test_a_turn_that_is_still_open_after_a_reload_keeps_its_reader() -> None:
    turns, stream = opened()
    turns.load(TURN.stored())
    turns.end(st.TurnOver("tu-1", st.TurnOutcome.LOST, reason="owner-restart"), [], TURN.conversation)
    turns.publish()
    name, result = ended(stream)
    assert (name, result["outcome"], result["reason"]) == ("result", "lost", "owner-restart")


@pytest.mark.parametrize("stored", [None, replace(TURN, id="tu-2")])
def test_a_turn_that_is_not_open_after_a_reload_is_reported_as_lost(stored: TurnRecord | None) -> None:
    turns, stream = opened()
    turns.load(stored and stored.stored())
    name, result = ended(stream)
    assert (name, result["outcome"], result["reason"]) == ("result", "lost", "refused-step")
    assert turns.stream is None
