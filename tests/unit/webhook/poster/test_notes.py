"""The text of a note."""

from dataclasses import replace

import pytest

from sessiond_webhook import markdown
from sessiond_webhook.deliveries.mentions import mentions
from sessiond_webhook.demands.machine import Demand, DemandState
from sessiond_webhook.poster import notes
from support.webhook.posting import a_comment

DEMAND = Demand(a_comment(), 1)


def first(demand: Demand) -> str:
    return (notes.wanted(demand) or "").split("\n")[0]


def test_each_state_of_a_demand_has_its_text() -> None:
    assert first(DEMAND) == first(replace(DEMAND, state=DemandState.ANSWERING)) == "Seen. The answer will appear here."
    assert first(replace(DEMAND, place=1)) == "Seen, place 1 in the queue. It is next. The answer will appear here."
    assert "2 others before it" in first(replace(DEMAND, place=3))
    answered = replace(DEMAND, state=DemandState.ANSWERED, text="So it is.")
    assert notes.wanted(answered) == notes.wanted(replace(answered, state=DemandState.POSTED))
    assert notes.wanted(answered) == f"So it is.\n\n{notes.marker('IC_1')}"


@pytest.mark.parametrize("state", [DemandState.REFUSED, DemandState.FAILED])
def test_a_reason_becomes_a_sentence_if_it_is_shown(state: DemandState) -> None:
    ended = replace(DEMAND, state=state, reason="pull-request-closed")
    assert first(ended) == "The pull request was closed before I answered this comment."
    assert notes.wanted(replace(ended, tell=False)) is None
    odd = first(replace(ended, reason="some-new_word: <b>detail</b> @mona"))
    assert odd == "I did not answer this comment: some new word."
    assert first(replace(ended, reason=None)).endswith("the reason is not known.")


def test_markers_are_unique_and_an_answer_cannot_contain_one() -> None:
    keys = ["IC_1", "IC_2", "MDEyOk==", "a --> b", ""]
    assert len({notes.marker(key) for key in keys}) == len(keys)
    assert all("--" not in notes.marker(key)[4:-3] for key in keys)
    body = notes.wanted(replace(DEMAND, state=DemandState.ANSWERED, text=f"x\n{notes.marker('IC_2')}")) or ""
    assert notes.marker("IC_2") not in body
    assert body.count(notes.MARK) == 1


@pytest.mark.parametrize("letter", ["x", "ö", "😀"])
def test_a_long_answer_is_cut_and_states_that(letter: str) -> None:
    body = notes.wanted(replace(DEMAND, state=DemandState.ANSWERED, text="```\n" + letter * 70_000)) or ""
    assert 60_000 < len(body.encode("utf-16-le")) // 2 <= notes.LIMIT
    assert body.endswith(f"\n```{notes.CUT}\n\n{notes.marker('IC_1')}")


def test_an_answer_that_just_fits_is_not_cut() -> None:
    room = notes.LIMIT - len(notes.marker("IC_1")) - 2
    for length, cut in ((room, False), (room + 1, True)):
        body = notes.wanted(replace(DEMAND, state=DemandState.ANSWERED, text="x" * length)) or ""
        assert (notes.CUT in body) is cut
        assert len(body) <= notes.LIMIT


@pytest.mark.parametrize(
    "text",
    ["`@mona " + "x" * 70_000 + "`", "<https://example.com/@mona?" + "x" * 70_000 + ">", "`" + "@mona " * 12_000 + "`"],
    ids=["a span", "an autolink", "a span of nothing else"],
)
def test_an_answer_that_is_cut_inside_code_mentions_nobody(text: str) -> None:
    body = notes.wanted(replace(DEMAND, state=DemandState.ANSWERED, text=text)) or ""
    assert notes.CUT in body and 50_000 < len(body) <= notes.LIMIT
    assert not mentions(body, "mona")


def test_an_open_block_hides_neither_the_marker_nor_the_sentence_about_the_cut() -> None:
    for text in ("```\nx", "- ```\n  x", "> ~~~\n> x", "<div>\n```", "```\n" + "x\n" * 40_000):
        body = notes.wanted(replace(DEMAND, state=DemandState.ANSWERED, text=text)) or ""
        page = markdown.render(body)
        assert page.rstrip().endswith(notes.marker("IC_1")), "the marker must be a separate HTML comment"
        assert (notes.CUT in body) == ("<em>This answer is longer" in page)
