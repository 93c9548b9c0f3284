"""A muted answer mentions nobody. Its code and its links do not change."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sessiond_webhook.deliveries.mentions import author_texts, mentions
from sessiond_webhook.poster.mute_mentions import ZERO_WIDTH_SPACE as Z
from sessiond_webhook.poster.mute_mentions import close_code_block, mute
from support.webhook.hostile_markdown import PIECES, calls_of

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
    "a quoted block": ("> ```\n@mona", f"> ```\n@{Z}mona"),
    "a tag with a backtick": ('<a title="`">@mona `', f'<a title="`">@{Z}mona `'),
    # CommonMark and a simple search for fences differ: here the last fence opens a block, or is none.
    "a block that a list has ended": ("-\n  ```\n@mona\n  ```", f"-\n  ```\n@{Z}mona\n  ```\n```"),
    "an HTML comment": ("<!--\n```\n-->\n@mona\n```", f"<!--\n```\n-->\n@{Z}mona\n```\n```"),
    "an HTML block": ("<div>\n```\n\n@mona\n", f"<div>\n```\n\n@{Z}mona"),
    "indented code": ("x\n\n    @a\n\n@mona", f"x\n\n    @a\n\n@{Z}mona"),
    "an indented line of a paragraph": ("x\n    @mona", f"x\n    @{Z}mona"),
    "indented code in a list": ("- x\n\n      @a\n- @mona", f"- x\n\n      @a\n- @{Z}mona"),
    "a longer fence": ("````\n```\n@a\n```\n````\n@mona", f"````\n```\n@a\n```\n````\n@{Z}mona"),
    "a span over two lines": ("a `@b\n  @c` @mona", f"a `@b\n  @c` @{Z}mona"),
    "a span in a quote in a list": ("- > `@a\n  > @b` @mona", f"- > `@a\n  > @b` @{Z}mona"),
    "a span in a heading": ("## `@a` @mona ##", f"## `@a` @{Z}mona ##"),
    "spans in a table": ("| `@a` | @m |\n|--|--|\n| @m | `@a` |", f"| `@a` | @{Z}m |\n|--|--|\n| @{Z}m | `@a` |"),
    "odd backticks in a table": ("|a|b|c|\n|-|-|-|\n|`|@m|`|", f"|a|b|c|\n|-|-|-|\n|`|@{Z}m|`|"),
    "a cell that is not as it was written": ("|a|\n|-|\n|`@a\\|`|", f"|a|\n|-|\n|`@{Z}a\\|`|"),
    "an escaped at sign": ("\\@mona", f"\\@{Z}mona"),
    "an entity": ("&#64;mona &#x40;m &commat;m", f"&#64;{Z}mona &#x40;{Z}m &commat;{Z}m"),
    "a letter as an entity": ("@&#109;ona", f"@{Z}&#109;ona"),
    "behind emphasis": ("_x_@mona", f"_x_@{Z}mona"),
    "a link's text and target": ("[@mona](https://a.b/@c)", f"[@{Z}mona](https://a.b/@c)"),
    "a span in a link": ("[`@a` @mona](/@c) @m", f"[`@a` @{Z}mona](/@c) @{Z}m"),
    "an autolink": ("<https://a.b/@c> @mona", f"<https://a.b/@c> @{Z}mona"),
    "a link's definition": ("[x] @mona\n\n[x]: /@c", f"[x] @{Z}mona\n\n[x]: /@c"),
    "a footnote": ("x[^1]\n\n[^1]: @mona", f"x[^1]\n\n[^1]: @{Z}mona"),
    "a footnote's paragraph": ("x[^1]\n\n[^1]: y\n\n    @mona", f"x[^1]\n\n[^1]: y\n\n    @{Z}mona"),
    "a footnote before a parenthesis": ("[^1](@mona)\n\n[^1]: x", f"[^1](@{Z}mona)\n\n[^1]: x"),
    "line ends of Windows": ("```\r\n@a\r\n```\r\n@mona", f"```\n@a\n```\n@{Z}mona"),
}


@pytest.mark.parametrize(("text", "after"), MENTIONS.values(), ids=MENTIONS)
def test_a_muted_text_mentions_nobody_and_keeps_its_code(text: str, after: str) -> None:
    assert mute(text) == after


@given(st.text(alphabet="@am`~>-\n\t <!/_*.[](){}|:^#&\\1", max_size=60))
@example("- `@a\n`@a`")
@example("|`@m|`\n|-|-|\n|`|@m`")
def test_muting_removes_mentions_and_changes_nothing_else(text: str) -> None:
    muted = mute(text)
    assert not mentions(muted, "a") and not mentions(muted, "m") and not mentions(muted, "am")
    assert close_code_block(text.rstrip()) == muted.replace(Z, "")
    assert mute(muted) == muted


@given(st.text(max_size=80))
def test_any_text_is_muted_without_an_exception(text: str) -> None:
    assert not any("@a" in said for said in author_texts(mute(f"{text} @a")))


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("```\nx", "\n```"),
        ("~~~~ py\nx\n~~~", "\n~~~~"),
        ("```\nx\n```", ""),
        ("```\nx\n````  ", ""),
        ("```", "\n```"),
        ("```\n\n", "\n```"),
        ("- ```\n  x", ""),
        ("> ```\n> x", ""),
        ("    ```", ""),
        ("<!--\n```", ""),
        ("x", ""),
        ("", ""),
        ("`" * 80, "\n" + "`" * 80),
        ("`" * 81, ""),
    ],
)
def test_an_open_code_block_is_closed(text: str, end: str) -> None:
    assert close_code_block(text) == text + end


@pytest.mark.parametrize("piece", PIECES)
def test_twice_the_hostile_text_causes_at_most_twice_the_work(piece: str) -> None:
    once, twice = (
        calls_of(lambda length=length: mute(f"x {piece * (length // len(piece))} @mona")) for length in (1_024, 2_048)
    )
    assert twice <= 2.2 * once + 200
    assert once <= 300 * 1_024
