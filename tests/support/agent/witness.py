"""What the model's log and the ledger show of a conversation, held against the turns that callers were told of."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sessiond.client import Client

CLAUDES_OWN = ("<system-reminder>", "<local-command-", "<command-name>", "[Request interrupted by user")
"""How texts begin that claude puts between a caller's."""
UNSAID = "No response requested."
"""What a resumed conversation has in place of an answer that was cut off with its process."""


@dataclass(frozen=True, slots=True)
class Said:
    """A turn as its caller knows it; `whole` is all that the model would have answered."""

    prompt: str
    outcome: str
    whole: str


def entries(client: Client, session: str) -> list[dict[str, Any]]:
    """The whole ledger."""
    found: list[dict[str, Any]] = []
    while more := client.ledger(session, found[-1]["id"] if found else None):
        found += more
    return found


def told(ledger: Iterable[Mapping[str, Any]], *events: str) -> list[Mapping[str, Any]]:
    """The entries of these kinds."""
    return [e for e in ledger if e["event"] in events]


def agents(client: Client, session: str) -> list[dict[str, int]]:
    """The guard of every process that was started, with `pid` and `agent_pid`; the last one is the present one."""
    return [e["guard"] for e in entries(client, session) if e["event"] == "agent-started"]


def spoken(messages: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(role, text) of all that callers and model said, in order; no tools, nothing of claude's own."""
    found = []
    for message in messages:
        if message["role"] == "system":
            continue
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        texts = [str(block["text"]).strip() for block in blocks if block["type"] == "text"]
        found += [(str(message["role"]), text) for text in texts if text and not text.startswith(CLAUDES_OWN)]
    return found


def intact(messages: Sequence[Mapping[str, Any]], turns: Sequence[Said]) -> None:
    """That the history holds these turns in their order, each once, and nothing else.

    Of a completed turn prompt and answer; of any other the prompt at most, and of its answer what it begins with.
    """
    history = spoken(messages)
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
        f"nobody's, or not in their order: {history[at : at + 6]} behind {history[max(0, at - 4) : at]}"
    )
