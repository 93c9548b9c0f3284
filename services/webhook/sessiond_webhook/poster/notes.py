"""What a demand's note says: our one comment in its thread, edited in place. Pure.

What the agent says mentions nobody (quiet.py), and a marker in it is broken, so that no text of ours claims another
demand.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Final

from sessiond_webhook.demands.machine import Demand, State
from sessiond_webhook.poster.mute_mentions import closed, quiet

LIMIT: Final = 65_536
"""Characters of a comment's body that GitHub takes (422 "body is too long" above)."""
CUT: Final = "\n\n*The answer is longer than a comment may be; the rest was cut off here.*"
MARK: Final = "<!-- sessiond:demand:"
FENCE_ROOM: Final = 84
"""Room for the line that closes a code block, in the cut text and in the sentence after it."""

REASONS: Final[Mapping[str, str]] = {
    "deleted": "The comment was deleted, so there is no answer to it.",
    "withdrawn": "The comment was withdrawn, so there is no answer to it.",
    "pull-request-closed": "The pull request was closed before this comment was answered.",
    "closed": "This is closed, so there is no answer to this comment.",
    "late": "This was closed before the comment came, so there is no answer to it.",
    "not-allowed": "I only answer comments of people who take part in this repository.",
    "secret-in-answer": "The answer contained something secret and is withheld. Somebody who runs this can read it.",
    "timeout": "Answering this comment took too long. A new comment is a new try.",
    "hold-limit": "Answering this comment took too long. A new comment is a new try.",
    "turn-failed": "I tried, and found no answer to this comment. A new comment is a new try.",
    "turn-lost": "The work on this comment was cut off. A new comment is a new try.",
    "lost-thrice": "The work on this comment was cut off three times. A new comment is a new try.",
    "edited-too-often": "The comment was edited again and again while I was answering it. A new comment is a new try.",
    "forced": "Somebody who runs this stopped the work on this comment.",
    "too-old": "This comment waited too long for its turn. A new comment is a new try.",
    "agent-broken": "The agent cannot be started at the moment. A new comment later is a new try.",
}
"""Stable words to a sentence for people. What follows a word after ": " is for logs, never for the thread."""


def marker(key: str) -> str:
    """The hidden last line of the note of this demand. A hash: a key may hold what ends an HTML comment."""
    return f"{MARK}{hashlib.sha256(key.encode()).hexdigest()[:32]} -->"


def sha(body: str) -> str:
    """What Note.shown holds of a body."""
    return hashlib.sha256(body.encode()).hexdigest()


def wanted(demand: Demand) -> str | None:
    """The whole body that the note must have now, at most LIMIT characters; None when nothing is to be said."""
    if demand.state in (State.OPEN, State.ANSWERING):
        return _marked(demand, seen(demand.place))
    if demand.state in (State.ANSWERED, State.POSTED):
        return _marked(demand, quiet((demand.text or "").replace(MARK, MARK.replace(":", " "))))
    return _marked(demand, sentence(demand.reason or "")) if demand.tell else None


def seen(place: int | None) -> str:
    """What stands there until there is an answer. `place` counts from 1; None when it is not known yet."""
    if place is None:
        return "Seen. The answer will stand here."
    ahead = place - 1
    before = "It is next." if ahead < 1 else f"{ahead} other{'s' if ahead > 1 else ''} before it."
    return f"Seen, place {place} in the queue. {before} The answer will stand here."


def sentence(reason: str) -> str:
    """A reason for people. A word that is not known is shown readably."""
    word = reason.partition(":")[0].strip()
    if word in REASONS:
        return REASONS[word]
    plain = " ".join(re.sub(r"[^0-9A-Za-z]+", " ", word).split())[:80]
    return f"There is no answer to this comment: {plain or 'the reason is not known'}."


def _marked(demand: Demand, text: str) -> str:
    end = f"\n\n{marker(demand.key)}"
    if _length(text) + _length(end) > LIMIT:
        text = _cut(text, LIMIT - _length(end) - _length(CUT) - FENCE_ROOM) + CUT
    return text + end


def _length(text: str) -> int:
    """In UTF-16 units: never less than what GitHub counts, whether it counts those or characters."""
    return len(text.encode("utf-16-le")) // 2


def _cut(text: str, room: int) -> str:
    data = text.encode("utf-16-le")[: room * 2]
    return closed(data.decode("utf-16-le", errors="ignore").rstrip())
