"""Text that mentions nobody. Pure.

Who takes part in a thread hears of the answer anyway, and an agent that names people must not call them, nor order a
bot about ("@bot merge"). So no answer mentions anybody: a zero-width space goes between the at sign and the name, which
stays readable. Code is left as it is, because people copy it and GitHub mentions nobody from it. Where it is not plain
that something is code (an odd backtick, raw HTML, a block that a list may have ended), it counts as text.
"""

import re
from typing import Final

ZERO_WIDTH_SPACE: Final = "\u200b"
LONGEST_FENCE: Final = 80
_FENCE: Final = re.compile(r"^( {0,3})(`{3,}(?=[^`]*$)|~{3,})")
_SPAN: Final = re.compile(r"(?<![`\\])(`+)(?!`).*?(?<!`)\1(?!`)")
_MENTION: Final = re.compile(r"(?<![0-9A-Za-z_])@(?=[0-9A-Za-z])")
_HTML: Final = re.compile(r"<[A-Za-z/!?]")
_HTML_WITHOUT_END: Final = re.compile(r"^\s*<(?:!|\?|pre|script|style|textarea)", re.IGNORECASE)


def quiet(text: str) -> str:
    """The text without mentions, and with its last code block closed."""
    done: list[str] = []
    fence = _Fence()
    html = doubt = endless = False  # of this paragraph, of this paragraph, of all that follows
    for line in closed(text.rstrip()).split("\n"):
        if not fence.open and not line.strip():
            html = doubt = False
        if not fence.open and line.lstrip().startswith("<") and _HTML.match(line.lstrip()):
            html, endless = True, endless or _HTML_WITHOUT_END.match(line) is not None
        if html or endless:
            done.append(_silent(line))
            continue
        inside = fence.take(line)
        if inside:
            done.append(line if fence.sure(line) else _silent(line))
            continue
        doubt = doubt or (_HTML.search(line) is not None and "`" in line) or "`" in _SPAN.sub("", line)
        done.append(_silent(line) if doubt else _outside_spans(line))
    return "\n".join(done)


def closed(text: str) -> str:
    """The text with an end to a code block that is open at its end."""
    fence = _Fence()
    for line in text.split("\n"):
        fence.take(line)
    return f"{text}\n{fence.open}" if fence.open and len(fence.open) <= LONGEST_FENCE else text


class _Fence:
    """The fenced code block that one is in, line by line (CommonMark 0.31, 4.5)."""

    def __init__(self) -> None:
        self.open = ""
        self._indent = 0

    def take(self, line: str) -> bool:
        """Whether this line belongs to a block, its first and last lines too."""
        found = _FENCE.match(line)
        if not self.open:
            if found is not None:
                self._indent, self.open = len(found[1]), found[2]
            return found is not None
        if found is not None and found[2].startswith(self.open) and line.strip() == found[2]:
            self.open = ""
        return True

    def sure(self, line: str) -> bool:
        """A block in a list ends, without a last line, at one that stands further left."""
        return not line.strip() or len(line) - len(line.lstrip(" ")) >= self._indent


def _outside_spans(line: str) -> str:
    done, at = [], 0
    for span in _SPAN.finditer(line):
        done += [_silent(line[at : span.start()]), span[0]]
        at = span.end()
    return "".join([*done, _silent(line[at:])])


def _silent(text: str) -> str:
    return _MENTION.sub(f"@{ZERO_WIDTH_SPACE}", text)
