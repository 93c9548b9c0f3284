"""The text of a *note*, the bot's one comment for a demand. The poster edits it in place. Pure.

The agent's text mentions nobody (`mute_mentions`). A marker inside that text is made invalid, so that no answer can be
taken for the note of another demand.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Final

from sessiond_webhook.demands.machine import Demand, DemandState
from sessiond_webhook.poster.mute_mentions import mute

LIMIT: Final = 65_536
"""Characters. GitHub refuses a longer body with 422 "body is too long"."""
CUT: Final = "\n\n*This answer is longer than a GitHub comment can be. The rest was cut off.*"
MARK: Final = "<!-- sessiond:demand:"

REASONS: Final[Mapping[str, str]] = {
    "deleted": "The comment was deleted, so I did not answer it.",
    "withdrawn": "The comment was withdrawn, so I did not answer it.",
    "pull-request-closed": "The pull request was closed before I answered this comment.",
    "closed": "This thread is closed, so I did not answer this comment.",
    "late": "This thread was closed before the comment arrived, so I did not answer it.",
    "not-allowed": "I answer only people who take part in this repository.",
    "secret-in-answer": "The answer contained a secret, so I did not post it. An operator of this service can read it.",
    "timeout": "The answer took too long. To try again, write a new comment.",
    "hold-limit": "The answer took too long. To try again, write a new comment.",
    "turn-failed": "I could not find an answer to this comment. To try again, write a new comment.",
    "turn-lost": "The work on this comment was interrupted. To try again, write a new comment.",
    "lost-thrice": "The work on this comment was interrupted three times. To try again, write a new comment.",
    "edited-too-often": "The comment was edited several times while I answered it. To try again, write a new comment.",
    "forced": "An operator of this service stopped the work on this comment.",
    "too-old": "This comment waited too long for its turn. To try again, write a new comment.",
    "agent-broken": "I cannot start the agent at the moment. To try again, write a new comment later.",
}
"""The sentence for each reason. A reason may have details after ": ", which are only for logs."""


def marker(key: str) -> str:
    """Return the hidden last line of this demand's note.

    It holds a hash, because a key can contain characters that end an HTML comment.
    """
    return f"{MARK}{hashlib.sha256(key.encode()).hexdigest()[:32]} -->"


def sha(body: str) -> str:
    """Return the SHA-256 of a body, as `Note.shown` holds it."""
    return hashlib.sha256(body.encode()).hexdigest()


def wanted(demand: Demand) -> str | None:
    """Return the whole body that the note must have now, at most `LIMIT` characters, or None for no note."""
    if demand.state in (DemandState.OPEN, DemandState.ANSWERING):
        return _with_marker(demand, seen(demand.place))
    if demand.state in (DemandState.ANSWERED, DemandState.POSTED):
        return _with_marker(demand, mute((demand.text or "").replace(MARK, MARK.replace(":", " "))))
    return _with_marker(demand, sentence(demand.reason or "")) if demand.tell else None


def seen(place: int | None) -> str:
    """Return the text of the note until there is an answer.

    `place` is the place in the queue and counts from 1. None means that it is not known yet.
    """
    if place is None:
        return "Seen. The answer will appear here."
    ahead = place - 1
    before = "It is next." if ahead < 1 else f"{ahead} other{'s' if ahead > 1 else ''} before it."
    return f"Seen, place {place} in the queue. {before} The answer will appear here."


def sentence(reason: str) -> str:
    """Return the sentence for a reason. An unknown reason is shown in readable form."""
    name = reason.partition(":")[0].strip()
    if name in REASONS:
        return REASONS[name]
    plain = " ".join(re.sub(r"[^0-9A-Za-z]+", " ", name).split())[:80]
    return f"I did not answer this comment: {plain or 'the reason is not known'}."


def _with_marker(demand: Demand, text: str) -> str:
    end = f"\n\n{marker(demand.key)}"
    if _length(text) + _length(end) > LIMIT:
        text = _cut(text, LIMIT - _length(end) - _length(CUT)) + CUT
    return text + end


def _length(text: str) -> int:
    """Return the length in UTF-16 units. GitHub may count characters, which are never more."""
    return len(text.encode("utf-16-le")) // 2


def _cut(text: str, room: int) -> str:
    """Return the beginning of `text`, muted again, because the cut may turn a code span into text."""
    kept = room
    while True:
        data = text.encode("utf-16-le")[: kept * 2]
        begin = mute(data.decode("utf-16-le", errors="ignore"))
        excess = _length(begin) - room
        if excess <= 0:
            return begin
        kept = max(0, kept - max(excess, room // 64))  # at least a part of `room`, so that the loop ends soon
