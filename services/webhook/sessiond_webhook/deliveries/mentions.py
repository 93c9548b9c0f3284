"""Which comments ask for an answer: those that mention us, those under a label, or all. Pure.

A mention is found where GitHub's own filter finds one (html-pipeline, `MentionFilter`): not in the middle of a word,
not before a slash, and not inside code, quoted lines or HTML comments, which nobody reads as said by the author.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from sessiond_webhook.demands.comment import Comment


class Kind(StrEnum):
    """The values of TRIGGER."""

    MENTION = "mention"
    LABEL = "label"
    ALL = "all"


_MENTION: Final = re.compile(
    r"(?:^|\W)@((?>[a-z0-9][a-z0-9-]*))(?!/)(?=\.+[ \t\W]|\.+$|[^0-9a-z_.]|$)", re.IGNORECASE | re.ASCII | re.MULTILINE
)
_FENCE: Final = re.compile(r" {0,3}(`{3,}|~{3,})([^\n]*)")
_QUOTE: Final = re.compile(r" {0,3}>")
_INDENTED: Final = re.compile(r"(?: {4}| {0,3}\t)")
_ITEM: Final = re.compile(r" {0,3}(?:[-+*]|\d{1,9}[.)])(?:[ \t]|$)")
_TICKS: Final = re.compile(r"`+")


@dataclass(frozen=True, slots=True)
class Trigger:
    """`login` is ours, as BOT_LOGIN has it; `label` is compared without regard to case, as GitHub's labels are."""

    kind: Kind
    login: str = ""
    label: str = ""

    def fits(self, comment: Comment) -> bool:
        """Whether this comment asks."""
        match self.kind:
            case Kind.ALL:
                return True
            case Kind.LABEL:
                return self.label.casefold() in (name.casefold() for name in comment.labels)
            case Kind.MENTION:
                return mentions(comment.body, self.login)


def mentions(body: str, login: str) -> bool:
    """Whether the text mentions this login. An app's `name[bot]` is mentioned as `@name`."""
    name = login.removesuffix("[bot]").casefold()
    if not name or "@" not in body:
        return False
    return any(found.casefold() == name for found in _MENTION.findall(spoken(body)))


def spoken(body: str) -> str:
    """The text without code, quoted lines and HTML comments; time grows with its length only."""
    text = _without_html_comments(body.replace("\r\n", "\n").replace("\r", "\n"))
    # A code span never reaches into another paragraph: two stray backticks far apart hide nothing.
    return "\n\n".join(_without_spans(block) for block in "\n".join(_lines(text)).split("\n\n"))


def _without_html_comments(text: str) -> str:
    kept, place = [], 0
    while (begin := text.find("<!--", place)) >= 0:
        end = text.find("-->", begin + 4)
        if end < 0:
            break
        kept.append(text[place:begin])
        place = end + 3
    return " ".join([*kept, text[place:]])


def _lines(text: str) -> Iterator[str]:
    """Lines outside fenced and indented code and quotes; an empty one for each left out."""
    fence, blank, in_list, in_code = "", True, False, False
    for line in text.split("\n"):
        found = _FENCE.match(line)
        if fence:
            if found and found[1].startswith(fence) and not found[2].strip():
                fence = ""
            yield ""
            continue
        if found and not ("`" in found[1] and "`" in found[2]):
            fence = found[1]
            yield ""
            continue
        if not line.strip():
            blank = True
            yield ""
            continue
        in_code = bool(_INDENTED.match(line)) and (blank or in_code) and not in_list
        if not line.startswith((" ", "\t")):
            in_list = False
        in_list = in_list or bool(_ITEM.match(line))
        blank = False
        yield "" if in_code or _QUOTE.match(line) else line


def _without_spans(text: str) -> str:
    """Without `code spans`: a run of backticks up to the next run of the same length (CommonMark 6.1)."""
    runs = [(found.start(), found.end()) for found in _TICKS.finditer(text)]
    later: dict[int, list[int]] = {}
    for number in range(len(runs) - 1, -1, -1):
        later.setdefault(runs[number][1] - runs[number][0], []).append(number)
    kept, place, number = [], 0, 0
    while number < len(runs):
        begin, end = runs[number]
        same = later[end - begin]
        while same and same[-1] <= number:
            same.pop()
        if not same:
            number += 1
            continue
        closing = same[-1]
        kept.append(text[place:begin])
        place, number = runs[closing][1], closing + 1
    return "`".join([*kept, text[place:]])
