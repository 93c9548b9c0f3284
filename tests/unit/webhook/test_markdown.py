"""The shared parser: positions of code spans and links, tables, and the nesting limit."""

import pytest

from sessiond_webhook import markdown


@pytest.mark.parametrize(
    ("text", "sources"),
    [
        ("a `b` ``c ` d``", ["`b`", "``c ` d``"]),
        ("`a\nb`", ["`a\nb`"]),
        ("<https://a.b/c> x", ["<https://a.b/c>"]),
        ("[`a` b](c 'd') e", ["`a`", "](c 'd')"]),
        ("[a][b]\n\n[b]: c", ["][b]"]),
        ("**`a`** `", ["`a`"]),
        ("[^1](a)", [""]),
        ("plain \\`text\\`", []),
    ],
)
def test_code_spans_autolinks_and_link_targets_have_positions(text: str, sources: list[str]) -> None:
    (inline,) = [token for token in markdown.parse(text)[0] if token.type == "inline"]
    ranges = [child.meta[markdown.SOURCE] for child in inline.children or () if markdown.SOURCE in child.meta]
    assert [inline.content[begin:end] for begin, end in ranges] == sources


def test_link_definitions_have_line_numbers() -> None:
    _, environment = markdown.parse("a\n\n[b]:\n  c\n\n[^d]: e")
    assert {label: found["map"] for label, found in environment["references"].items()} == {"B": [2, 4], "^D": [5, 6]}


def test_tables_and_strikethrough_are_read() -> None:
    page = markdown.render("| a |\n|---|\n| ~~b~~ |")
    assert "<table>" in page and "<s>b</s>" in page


def test_blocks_below_the_limit_of_nesting_are_dropped() -> None:
    assert "deep" in markdown.render("> " * (markdown.MAX_NESTING - 1) + "deep")
    assert "deep" not in markdown.render("> " * (markdown.MAX_NESTING + 1) + "deep")


def test_parsing_blocks_only_gives_the_same_blocks() -> None:
    text = "# a\n\n- b `c`\n\n```\nd"
    whole, blocks = markdown.parse(text)[0], markdown.parse_blocks(text)
    assert [(token.type, token.map, token.level) for token in whole] == [
        (token.type, token.map, token.level) for token in blocks
    ]
    assert not any(token.children for token in blocks)


def test_line_ends_are_unified() -> None:
    assert markdown.unify_line_ends("a\r\nb\rc\nd") == "a\nb\nc\nd"
