"""Removes mentions from answers. Pure.

GitHub notifies everybody in a thread of an answer anyway. An agent that names people must not notify them again, nor
give orders to other bots ("@bot merge"). So this module puts a zero-width space between each at sign and the name after
it. The text stays readable. Code, link targets and autolinks do not change: people copy them, and GitHub finds no
mention there. Raw HTML counts as text.
"""

import re
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from markdown_it.token import Token

from sessiond_webhook import markdown

ZERO_WIDTH_SPACE: Final = "\u200b"
LONGEST_FENCE: Final = 80
"""Characters. A longer fence is not closed, so that the text grows by a bounded amount."""
_FOOTNOTE: Final = "[^"
_MENTION: Final = re.compile(r"(?<![0-9A-Za-z])(?:@|&(?:#0*64|#[xX]0*40|commat);)(?=[0-9A-Za-z&])")

_Range = tuple[int, int]


def mute(text: str) -> str:
    """Return the text without mentions, and with its last code block closed."""
    text = close_code_block(markdown.unify_line_ends(text).rstrip())
    lines = text.split("\n")
    literal = _literal_ranges(text, lines)
    return "\n".join(_mute_line(line, literal.get(number, ())) for number, line in enumerate(lines))


def close_code_block(text: str) -> str:
    """Return the text, and close a code block that is still open at its end.

    A code block inside a list or a quote ends with the list or quote, so it needs no fence of its own.
    """
    tokens, lines = markdown.parse_blocks(text), text.split("\n")
    if not tokens or tokens[-1].type != "fence" or tokens[-1].level or tokens[-1].map is None:
        return text
    fence, (first, after) = tokens[-1].markup, tokens[-1].map
    last = lines[after - 1].strip(" \t")
    closed = after - 1 > first and last.startswith(fence) and not last.strip(fence[0])
    return text if closed or len(fence) > LONGEST_FENCE else f"{text}\n{fence}"


def _literal_ranges(text: str, lines: Sequence[str]) -> Mapping[int, Sequence[_Range]]:
    """Return, for each line, the ranges of columns that must not change, in order."""
    tokens, environment = markdown.parse(text)
    found: defaultdict[int, list[_Range]] = defaultdict(list)
    for number in (*_code_lines(tokens, text), *_definition_lines(environment)):
        found[number] = [(0, len(lines[number]))]
    columns: defaultdict[int, int] = defaultdict(int)
    for token in tokens:
        if token.type == "inline" and token.map is not None:
            for number, literal in _inline_ranges(token, token.map[0], lines, columns):
                found[number].append(literal)
    return found


def _code_lines(tokens: Sequence[Token], text: str) -> Iterator[int]:
    """Yield the lines of code blocks.

    GitHub has footnotes, CommonMark does not. Indented lines below a footnote are text, so only fences count then.
    """
    kinds = ("fence",) if _FOOTNOTE in text else ("fence", "code_block")
    for token in tokens:
        if token.type in kinds and token.map is not None:
            yield from range(*token.map)


def _definition_lines(environment: Mapping[str, Any]) -> Iterator[int]:
    """Yield the lines of link reference definitions, but not of footnotes, which look the same to CommonMark."""
    for label, definition in environment.get("references", {}).items():
        if not label.startswith("^"):
            yield from range(*definition["map"])


def _inline_ranges(
    token: Token, first_line: int, lines: Sequence[str], columns: dict[int, int]
) -> Iterator[tuple[int, _Range]]:
    """Yield line and columns of each literal range of an inline token.

    `columns` holds the column at which the search in a line goes on, because the cells of a table's row share a line.
    After a piece that differs from its source, the line has no further literal range.
    """
    ranges = deque(child.meta[markdown.SOURCE] for child in token.children or () if markdown.SOURCE in child.meta)
    offset = 0
    for number, line in enumerate(token.content.split("\n"), first_line):
        piece = line.strip(" \t")
        begin = offset + len(line) - len(line.lstrip(" \t"))
        end, offset = begin + len(piece), offset + len(line) + 1
        column = lines[number].find(piece, columns[number])
        columns[number] = column + len(piece) if column >= 0 else len(lines[number])
        while ranges and ranges[0][0] < end:
            first, last = ranges[0]
            if column >= 0 and last > begin:
                yield number, (column + max(first, begin) - begin, column + min(last, end) - begin)
            if last > end:  # it goes on in the next line
                break
            ranges.popleft()


def _mute_line(line: str, literal: Sequence[_Range]) -> str:
    done, place = [], 0
    for begin, end in literal:
        if begin >= place:
            done += [_mute_text(line[place:begin]), line[begin:end]]
            place = end
    return "".join([*done, _mute_text(line[place:])])


def _mute_text(text: str) -> str:
    return _MENTION.sub(rf"\g<0>{ZERO_WIDTH_SPACE}", text)
