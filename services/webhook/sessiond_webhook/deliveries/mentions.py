"""Decides which comments ask for an answer: those that mention the bot, those under a label, or all. Pure.

A mention counts where GitHub links one: in the text of the rendered comment, but not inside code or a link. The rule is
that of GitHub's `MentionFilter` (html-pipeline). A mention inside a quote does not count either, because the author of
the comment did not write it.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from html import unescape
from typing import Final

from sessiond_webhook import markdown
from sessiond_webhook.demands.comment import Comment


class Kind(StrEnum):
    """The values of TRIGGER."""

    MENTION = "mention"
    LABEL = "label"
    ALL = "all"


_MENTION: Final = re.compile(
    r"(?:^|\W)@((?>[a-z0-9][a-z0-9-]*))(?!/)(?=\.+[ \t\W]|\.+$|[^0-9a-z_.]|$)", re.IGNORECASE | re.ASCII | re.MULTILINE
)
_SILENT_ELEMENTS: Final = frozenset({"a", "blockquote", "code", "pre", "script", "style", "tt"})
"""HTML elements in which a mention does not count."""
_MARKUP: Final = re.compile(
    r"""
    <!--(?:-?>|.*?(?:--!?>|\Z))                 # a comment; one without an end hides all that follows, as in a browser
    | <(?P<end>/?)(?P<name>[a-z][^\s/>]*+)
      (?:[^>=]++|=\s*+(?:"[^"]*+(?:"|\Z)|'[^']*+(?:'|\Z))?)*+(?:>|\Z)
    | <[!?/][^>]*+(?:>|\Z)
    """,
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
"""One tag, comment or declaration of HTML. It matches wherever it starts, so a search reads the text once."""


@dataclass(frozen=True, slots=True)
class Trigger:
    """The rule for comments that ask. `login` is the bot's (BOT_LOGIN). Labels ignore case, as on GitHub."""

    kind: Kind
    login: str = ""
    label: str = ""

    def fits(self, comment: Comment) -> bool:
        """Whether this comment asks for an answer."""
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
    if not name or not ("@" in body or "&" in body):  # an at sign can also be an entity
        return False
    return any(found.casefold() == name for text in author_texts(body) for found in _MENTION.findall(text))


def author_texts(body: str) -> Iterator[str]:
    """Yield the texts of the rendered comment in which a mention counts. Time is linear in the length of `body`."""
    page = markdown.render(body)
    open_elements: Counter[str] = Counter()
    place = 0
    for markup in _MARKUP.finditer(page):
        if not open_elements.total():
            yield unescape(page[place : markup.start()])
        place = markup.end()
        name = (markup["name"] or "").lower()
        if name in _SILENT_ELEMENTS:
            open_elements[name] = max(0, open_elements[name] + (-1 if markup["end"] else 1))
    if not open_elements.total():
        yield unescape(page[place:])
