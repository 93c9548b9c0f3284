"""Compares the conversation in the model's log and in the ledger with the turns that callers know."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sessiond.client import Client

CLAUDES_OWN = ("<system-reminder>", "<local-command-", "<command-name>", "[Request interrupted by user")
"""Beginnings of texts that claude itself adds."""
UNSAID = "No response requested."
"""The text that a resumed conversation has instead of the answer of a killed process."""


@dataclass(frozen=True, slots=True)
class CallerTurn:
    """A turn as its caller knows it. `whole` is the complete answer of the model."""

    prompt: str
    outcome: str
    whole: str


def entries(client: Client, session: str) -> list[dict[str, Any]]:
    """Return the whole ledger."""
    found: list[dict[str, Any]] = []
    while more := client.ledger(session, found[-1]["id"] if found else None):
        found += more
    return found


def of_kind(ledger: Iterable[Mapping[str, Any]], *events: str) -> list[Mapping[str, Any]]:
    """Return the entries of these events."""
    return [e for e in ledger if e["event"] in events]


def agents(client: Client, session: str) -> list[dict[str, int]]:
    """Return the guard of each started process, with `pid` and `agent_pid`. The last one is the current one."""
    return [e["guard"] for e in entries(client, session) if e["event"] == "agent-started"]


def texts_of(messages: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return (role, text) of all texts of callers and model in order, without tools and claude's own texts."""
    found = []
    for message in messages:
        if message["role"] == "system":
            continue
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        texts = [str(block["text"]).strip() for block in blocks if block["type"] == "text"]
        found += [(str(message["role"]), text) for text in texts if text and not text.startswith(CLAUDES_OWN)]
    return found


def check_history(messages: Sequence[Mapping[str, Any]], turns: Sequence[CallerTurn]) -> None:
    """Check that the history has these turns in order, each once, and nothing else.

    A completed turn has its prompt and its answer. Any other turn has at most its prompt and the beginning of its
    answer.
    """
    history = texts_of(messages)
    at = 0
    for turn in turns:
        if history[at : at + 1] != [("user", turn.prompt)]:
            assert turn.outcome != "completed", (f"{turn} is not in its place", at, history[max(0, at - 4) : at + 4])
            continue
        role, text = (*history[at + 1 : at + 2], ("", ""))[0]
        if turn.outcome == "completed":
            assert (role, text) == ("assistant", turn.whole), (turn, history[max(0, at - 4) : at + 4])
        begun = role == "assistant" and (turn.whole.startswith(text) or text == UNSAID)
        at += 1 + begun
    assert at == len(history), (
        f"unknown texts, or a wrong order: {history[at : at + 6]} after {history[max(0, at - 4) : at]}"
    )
