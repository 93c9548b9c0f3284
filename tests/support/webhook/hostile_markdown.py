"""Texts that are expensive for a Markdown parser, and a count of the work that they cause."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

PIECES: Final = [
    "`",
    "``a`",
    "`\n`` ",
    "<!--",
    "<!-- ",
    "@",
    "@a/",
    "> ",
    "> a\n",
    "> a\n\n",
    "    ",
    "\t",
    "~~~\n",
    "```\n",
    "[",
    "]",
    "[]",
    "![",
    "[](",
    "[a](",
    "[a][b]",
    "[[]](",
    "](",
    "[x]((",
    '![a](b "',
    "[a]: x\n",
    "[a]: ",
    "<",
    "<a ",
    "<b>",
    "<!",
    "<?",
    "<![CDATA[",
    '<a href="',
    "<http:",
    "<a@",
    "*",
    "**a",
    "*a **b ",
    "***",
    "_a",
    "~~",
    "~",
    "&",
    "&#",
    "\\",
    "- ",
    "- a\n",
    "-\n",
    "1. ",
    "> - ",
    "|",
    "|a",
    "a|\n|-|\n",
    "#",
    "# ",
    "=\n",
    "x\n",
    "(",
    "()",
    "`@a` ",
    "|`@a\\|`",
]


def calls_of(work: Callable[[], Any]) -> int:
    """Return the number of calls of Python and C functions that `work` makes."""
    calls = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return calls
