"""An open turn's reader is told its one result, also when the stored state is taken again beneath it."""

from typing import Any

import pytest

from sessiond.agent import state as st
from sessiond.session.callers.turns import TurnBook
from sessiond.session.callers.waiters import StreamItem, TurnStream
from sessiond.store.store import Store

TURN: dict[str, Any] = {
    "id": "tu-1", "turn": "tu-1", "key": None, "attempt": 1, "state": "accepted", "fence": 1, "kind": "worker",
    "conversation": {"id": "c", "generation": 1, "fresh": False},
}  # fmt: skip


def opened() -> tuple[TurnBook, TurnStream]:
    book = TurnBook(Store("redis://127.0.0.1:1", "o/r", "i"), lambda: None)  # nothing here asks it
    book.accept(TURN)
    book.publish()
    assert book.stream is not None
    return book, book.stream


def ended(stream: TurnStream) -> StreamItem:
    stream.close()
    assert stream._result is not None, "its reader waits for ever"
    (item,) = list(stream)
    return item


def test_the_turn_that_is_found_open_again_has_its_reader_still() -> None:
    book, stream = opened()
    book.load(TURN)
    book.over(st.TurnOver("tu-1", st.Outcome.LOST, reason="owner-restart"), [], TURN["conversation"])
    book.publish()
    name, result = ended(stream)
    assert (name, result["outcome"], result["reason"]) == ("result", "lost", "owner-restart")


@pytest.mark.parametrize("stored", [None, {**TURN, "id": "tu-2"}])
def test_a_turn_that_is_open_no_more_is_told_lost(stored: dict[str, Any] | None) -> None:
    book, stream = opened()
    book.load(stored)
    name, result = ended(stream)
    assert (name, result["outcome"], result["reason"]) == ("result", "lost", "refused-step")
    assert book.stream is None
