"""The outcome line of an answer: the last line that is not empty, and only a JSON object. Pure.

{"outcome": "done" | "more" | "nothing-to-do" | "stuck", "note": "..."}
"""

from dataclasses import dataclass
from typing import Final

import orjson

OUTCOMES: Final = ("done", "more", "nothing-to-do", "stuck")
NOTE_LIMIT: Final = 2_000


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """How the agent says that its turn ended. `note` has at most NOTE_LIMIT characters."""

    outcome: str
    note: str


def outcome_of(text: str) -> TaskOutcome | None:
    """Return the outcome in an answer; None if the line is missing or not valid."""
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
    return TaskOutcome(outcome, note.strip()[:NOTE_LIMIT])
