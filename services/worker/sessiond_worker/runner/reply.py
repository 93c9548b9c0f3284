"""The agent's structured last line: a JSON object, alone on the answer's last line that is not empty. Pure.

{"outcome": "done" | "more" | "nothing-to-do" | "stuck", "note": "..."}
"""

from dataclasses import dataclass
from typing import Final

import orjson

OUTCOMES: Final = ("done", "more", "nothing-to-do", "stuck")
NOTE_LIMIT: Final = 2_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the agent says that its turn ended; `note` has at most NOTE_LIMIT characters."""

    outcome: str
    note: str


def outcome_of(text: str) -> Outcome | None:
    """The outcome in an answer; None when the line is missing or is not what it has to be."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    try:
        body = orjson.loads(lines[-1].strip())
    except orjson.JSONDecodeError:
        return None
    if not isinstance(body, dict):
        return None
    outcome, note = body.get("outcome"), body.get("note", "")
    if outcome not in OUTCOMES or not isinstance(note, str):
        return None
    return Outcome(outcome, note.strip()[:NOTE_LIMIT])
