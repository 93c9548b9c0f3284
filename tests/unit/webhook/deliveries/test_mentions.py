"""Texts that mention the bot by the rules of GitHub and CommonMark. The work on hostile text is linear."""

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessiond_webhook.deliveries import intents, mentions
from sessiond_webhook.deliveries.authorization import People
from sessiond_webhook.deliveries.intents import Demanded, Ignored, Rules
from sessiond_webhook.deliveries.mentions import Kind, Trigger
from sessiond_webhook.demands.comment import Person
from support.webhook import payloads
from support.webhook.hostile_markdown import PIECES, calls_of

MENTIONED = [
    "@helper", "hello @helper!", "@HELPER, please", "(@helper)", "*@helper*", "@helper.", "@helper...", "请@helper看",
    "@helper's", "a\n@helper\nb", "@helper: x", "a `code` @helper `code`", "`` ` `` @helper", "`@other @helper",
    "```\ncode\n```\n@helper", "> quoted\n\n@helper", "- item\n\n    @helper in the item", "a\n    @helper lazy",
    "<!-- x --> @helper", "\\`@helper", "~~~\n```\n~~~\n@helper", "@helper@example", "``@helper`",
    "a stray `\n\n@helper\n\nand another `",
]  # fmt: skip
NOT_MENTIONED = [
    "", "helper", "mail@helper.example", "@helper-two", "@helpers", "@helper/team", "@helper_", "@helper.example",
    "> @helper", "  > @helper", "`@helper`", "`` a ` @helper ``",
    "```\n@helper\n```", "```\n@helper", "~~~x\n@helper\n~~~",
    "text\n\n    @helper", "\t@helper", "<!-- @helper -->", "````\n```\n@helper\n````", "a`\n@helper\n`b",
]  # fmt: skip

MENTIONED_IN_MARKDOWN = {
    "escaped": "\\@helper",
    "as an entity": "&#64;helper, &commat;other",
    "emphasis with underscores": "_@helper_",
    "after emphasis, without a space": "a*b*@helper",
    "struck through": "~~@helper~~",
    "a heading": "# @helper",
    "a heading with an underline": "@helper\n===",
    "a table's cell": "| a |\n|---|\n| @helper |",
    "a cell between two odd backticks": "| a | b | c |\n|---|---|---|\n| ` | @helper | ` |",
    "a shorter fence does not close": "````\n```\n````\n@helper",
    "a fence with text behind it does not close": "```\n``` x\n```\n@helper",
    "a fence of backticks has none in its info": "``` a`b\n@helper",
    "a fence that its list has ended": "- ```\n@helper",
    "a fence that its quote has ended": "> ```\n@helper",
    "after a quote and a blank line": "> @other said\n\n@helper explain",
    "an HTML element": "<div>@helper</div>",
    "an HTML block": "<details>\n<summary>more</summary>\n\n@helper\n\n</details>",
    "a comment that ends at once": "<!--> @helper",
    "a tag with an angle bracket in a value": '<b title=">">@helper</b>',
    "after an element in which nothing counts": "<pre>x</pre> @helper",
    "a deep list": "\n".join("  " * n + "- x" for n in range(8)) + "\n" + "  " * 8 + "- @helper",
}
NOT_MENTIONED_IN_MARKDOWN = {
    "a link's text": "[@helper](https://example.com)",
    "a link's text by reference": "[@helper][a]\n\n[a]: https://example.com",
    "a link's target": "[x](https://example.com/@helper)",
    "an autolink": "<https://example.com/@helper>",
    "an image's text": "![@helper](https://example.com/x.png)",
    "a nested quote": "> > @helper",
    "a quote in a list": "- > @helper",
    "a lazy line of a quote": "> quoted\n@helper",
    "a quote of the bot's own note": "> @helper: Seen, place 2 in the queue. The answer will appear here.\n\nThanks!",
    "indented code in a list": "- item\n\n      @helper",
    "a fence in a list": "1. ```\n   @helper\n   ```",
    "a longer fence around a shorter one": "`````\n````\n@helper\n````\n`````",
    "tildes around backticks": "~~~\n```\n@helper\n~~~",
    "a code span of two backticks": "``@helper ` x``",
    "a code span over an HTML tag": "`<b>@helper</b>`",
    "HTML code": "<code>@helper</code>",
    "an HTML block of code": "<pre>\n\n@helper\n\n</pre>",
    "an HTML quote over several blocks": "<blockquote>\n\n@helper\n\n</blockquote>",
    "an HTML link": '<a href="x">@helper</a>',
    "an attribute": '<b title="@helper">x</b>',
    "a comment over several lines": "<!--\n\n@helper\n\n-->",
    "a comment without an end": "<!-- @helper",
    "a comment that began in another block": "<div><!--\n\n@helper\n\n-->",
    "a code span in a table": "| a |\n|---|\n| `@helper` |",
}


@pytest.mark.parametrize("body", MENTIONED)
def test_a_mention_is_found(body: str) -> None:
    assert mentions.mentions(body, "helper[bot]") and mentions.mentions(body.replace("\n", "\r\n"), "Helper")


@pytest.mark.parametrize("body", NOT_MENTIONED)
def test_a_similar_text_is_not_a_mention(body: str) -> None:
    assert not mentions.mentions(body, "helper[bot]")


@pytest.mark.parametrize("body", MENTIONED_IN_MARKDOWN.values(), ids=MENTIONED_IN_MARKDOWN)
def test_a_mention_is_found_in_markdown(body: str) -> None:
    assert mentions.mentions(body, "helper[bot]") and mentions.mentions(body.replace("\n", "\r\n"), "helper")


@pytest.mark.parametrize("body", NOT_MENTIONED_IN_MARKDOWN.values(), ids=NOT_MENTIONED_IN_MARKDOWN)
def test_markdown_that_hides_a_mention_has_none(body: str) -> None:
    assert not mentions.mentions(body, "helper[bot]") and not mentions.mentions(body.replace("\n", "\r\n"), "helper")


def test_an_empty_login_is_never_mentioned() -> None:
    assert not mentions.mentions("@ @helper", "") and not mentions.mentions("@", "[bot]")


@pytest.mark.parametrize("piece", ["`", "``a`", "<!--", "@", "> ", "    ", "~~~\n", "@a/", "`\n`` "])
def test_a_hostile_body_is_read_within_two_seconds(piece: str) -> None:
    began = time.process_time()
    mentions.mentions(piece * (65_536 // len(piece)) + "@helper", "helper")
    list(mentions.author_texts("".join("`" * n + "x" for n in range(360))))
    assert time.process_time() - began < 2.0


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("before", ["", "x "], ids=["first", "in a paragraph"])
def test_twice_the_hostile_text_causes_at_most_twice_the_work(piece: str, before: str) -> None:
    once, twice = (
        calls_of(lambda length=length: mentions.mentions(f"{before}{piece * (length // len(piece))}@helper", "x"))
        for length in (1_024, 2_048)
    )
    assert twice <= 2.2 * once + 200
    assert once <= 300 * 1_024


@given(st.text(alphabet="@helpr`~>-\n\t <!/_.x", max_size=60))
def test_text_without_code_quotes_and_comments_is_unchanged(body: str) -> None:
    said = "".join(mentions.author_texts(body))
    # The page has extra line ends between blocks, and no marks of lists and rules (-).
    assert len(said) <= len(body) + 2 * body.count("\n") + 8
    if not any(mark in body for mark in ("`", ">", "~", "    ", "\t", "_", "<")):
        assert [c for c in said if c not in "-\n "] == [c for c in body if c not in "-\n "]


@given(st.text(max_size=80))
def test_any_text_is_read_without_an_exception(body: str) -> None:
    assert mentions.mentions(body + "\n\n@helper", "helper") in (True, False)
    list(mentions.author_texts(body))


RULES = Rules(Trigger(Kind.MENTION, "helper[bot]"), People(Person(4711, "Bot", "helper[bot]")), "bug")
ALL = replace(RULES, trigger=Trigger(Kind.ALL))


def test_a_label_or_every_comment_can_be_the_trigger() -> None:
    labelled = replace(RULES, trigger=Trigger(Kind.LABEL, label="BUG"))
    assert isinstance(intents.read("issue_comment", payloads.comment(body="x"), labelled), Demanded)
    bare = payloads.comment(body="@helper x", issue__labels=[])
    assert intents.read("issue_comment", bare, labelled) == Ignored("no-trigger")
    assert isinstance(intents.read("issue_comment", payloads.comment(body="x"), ALL), Demanded)
