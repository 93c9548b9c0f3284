"""Markdown as GitHub reads it: one CommonMark parser for comments that arrive and for notes that the bot posts. Pure.

Tables and strikethrough are on, because GitHub has them. Bare URLs are text, because CommonMark does not link them.
`docs/decisions/0008-markdown-it-for-mentions.md` gives the reasons.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from markdown_it import MarkdownIt
from markdown_it.helpers import parseLinkLabel
from markdown_it.rules_inline import StateInline, autolink, backtick, link
from markdown_it.token import Token

MAX_NESTING: Final = 20
"""Depth of nested quotes, lists and links. The parser drops deeper blocks, which limits its work on hostile text."""
SOURCE: Final = "source"
"""The key of `Token.meta` under which `parse` records `(start, end)`, offsets into the content of the inline token."""

_Rule = Callable[[StateInline, bool], bool]


def unify_line_ends(text: str) -> str:
    """Return the text with `\\n` as its only line end, which is how the parser counts lines."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def render(text: str) -> str:
    """Return the text as HTML. Raw HTML is kept as it is."""
    return str(_PARSER.render(text))


def parse(text: str) -> tuple[list[Token], Mapping[str, Any]]:
    """Return the tokens, and the parser's environment, which holds the link reference definitions.

    Code spans, autolinks and the targets of inline links have their place in `Token.meta[SOURCE]`.
    """
    environment: dict[str, Any] = {}
    return _PARSER.parse(text, environment), environment


def parse_blocks(text: str) -> list[Token]:
    """Return the tokens of blocks only. This is cheaper than `parse`; inline tokens have no children."""
    return _BLOCK_PARSER.parse(text)


def _recording(rule: _Rule, start_of: Callable[[StateInline, int], int] = lambda state, start: start) -> _Rule:
    """Wrap an inline rule, so that the last token it makes has the place of its source."""

    def recorded(state: StateInline, silent: bool) -> bool:
        start, count = state.pos, len(state.tokens)
        if not rule(state, silent):
            return False
        if not silent and len(state.tokens) > count and state.tokens[-1].type in ("code_inline", "link_close"):
            state.tokens[-1].meta[SOURCE] = (start_of(state, start), state.pos)
        return True

    return recorded


def _end_of_label(state: StateInline, start: int) -> int:
    """Return where a link's literal range starts: after its label. A footnote (GitHub has these) has no such range."""
    return state.pos if state.src.startswith("[^", start) else parseLinkLabel(state, start, True)


def _new_parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"maxNesting": MAX_NESTING}).enable(["table", "strikethrough"])
    parser.inline.ruler.at("backticks", _recording(backtick))
    parser.inline.ruler.at("autolink", _recording(autolink))
    parser.inline.ruler.at("link", _recording(link, _end_of_label))
    return parser


_PARSER: Final = _new_parser()
_BLOCK_PARSER: Final = _new_parser()
_BLOCK_PARSER.core.ruler.enableOnly(["normalize", "block"])
