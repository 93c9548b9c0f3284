"""What a note says, and that it mentions nobody."""

from dataclasses import replace

import pytest

from sessiond_webhook.demands.machine import Demand, State
from sessiond_webhook.poster import notes
from sessiond_webhook.poster.mute_mentions import ZERO_WIDTH_SPACE as Z
from sessiond_webhook.poster.mute_mentions import quiet
from support.posting import a_comment

DEMAND = Demand(a_comment(), 1)


def first(demand: Demand) -> str:
    return (notes.wanted(demand) or "").split("\n")[0]


def test_each_state_has_its_text() -> None:
    assert first(DEMAND) == first(replace(DEMAND, state=State.ANSWERING)) == "Seen. The answer will stand here."
    assert first(replace(DEMAND, place=1)) == "Seen, place 1 in the queue. It is next. The answer will stand here."
    assert "2 others before it" in first(replace(DEMAND, place=3))
    answered = replace(DEMAND, state=State.ANSWERED, text="So it is.")
    assert notes.wanted(answered) == notes.wanted(replace(answered, state=State.POSTED))
    assert notes.wanted(answered) == f"So it is.\n\n{notes.marker('IC_1')}"


@pytest.mark.parametrize("state", [State.REFUSED, State.FAILED])
def test_a_reason_is_a_sentence_if_it_is_told(state: State) -> None:
    ended = replace(DEMAND, state=state, reason="pull-request-closed")
    assert first(ended) == "The pull request was closed before this comment was answered."
    assert notes.wanted(replace(ended, tell=False)) is None
    odd = first(replace(ended, reason="some-new_word: <b>detail</b> @mona"))
    assert odd == "There is no answer to this comment: some new word."
    assert first(replace(ended, reason=None)).endswith("the reason is not known.")


def test_markers_differ_and_none_can_be_smuggled_in() -> None:
    keys = ["IC_1", "IC_2", "MDEyOk==", "a --> b", ""]
    assert len({notes.marker(key) for key in keys}) == len(keys)
    assert all("--" not in notes.marker(key)[4:-3] for key in keys)
    body = notes.wanted(replace(DEMAND, state=State.ANSWERED, text=f"x\n{notes.marker('IC_2')}")) or ""
    assert notes.marker("IC_2") not in body
    assert body.count(notes.MARK) == 1


@pytest.mark.parametrize("letter", ["x", "ö", "😀"])
def test_a_long_answer_is_cut_and_says_so(letter: str) -> None:
    body = notes.wanted(replace(DEMAND, state=State.ANSWERED, text="```\n" + letter * 70_000)) or ""
    assert 60_000 < len(body.encode("utf-16-le")) // 2 <= notes.LIMIT
    assert body.endswith(f"\n```{notes.CUT}\n\n{notes.marker('IC_1')}")


def test_what_just_fits_is_not_cut() -> None:
    room = notes.LIMIT - len(notes.marker("IC_1")) - 2
    for length, cut in ((room, False), (room + 1, True)):
        body = notes.wanted(replace(DEMAND, state=State.ANSWERED, text="x" * length)) or ""
        assert (notes.CUT in body) is cut
        assert len(body) <= notes.LIMIT


MENTIONS = {
    "a name": ("ask @mona, (@octo/team)", f"ask @{Z}mona, (@{Z}octo/team)"),
    "an address": ("a@b.c and @ alone", "a@b.c and @ alone"),
    "a span": ("`@decorator` and @mona", f"`@decorator` and @{Z}mona"),
    "a span of two": ("``a ` @b`` @mona", f"``a ` @b`` @{Z}mona"),
    "a block": ("```py\n@dataclass\n```\n@mona", f"```py\n@dataclass\n```\n@{Z}mona"),
    "tildes": ("~~~\n@a\n```\n@b\n~~~\n@mona", f"~~~\n@a\n```\n@b\n~~~\n@{Z}mona"),
    "a block without an end": ("```\n@a", "```\n@a\n```"),
    "a block in a list": ("1. x\n   ```\n   @a\n   ```", "1. x\n   ```\n   @a\n   ```"),
    "an odd backtick": ("a ` b\n` @mona `", f"a ` b\n` @{Z}mona `"),
    "an escaped backtick": ("\\`@mona`", f"\\`@{Z}mona`"),
    "a block that a list has ended": ("-\n  ```\n@mona\n  ```", f"-\n  ```\n@{Z}mona\n  ```"),
    "a quoted block": ("> ```\n@mona", f"> ```\n@{Z}mona"),
    "an HTML comment": ("<!--\n```\n-->\n@mona\n```", f"<!--\n```\n-->\n@{Z}mona\n```"),
    "an HTML block": ("<div>\n```\n\n@mona\n", f"<div>\n```\n\n@{Z}mona\n```"),
    "a tag with a backtick": ('<a title="`">@mona `', f'<a title="`">@{Z}mona `'),
}


@pytest.mark.parametrize(("text", "after"), MENTIONS.values(), ids=MENTIONS)
def test_nobody_is_mentioned_and_code_is_left_alone(text: str, after: str) -> None:
    assert quiet(text) == after
