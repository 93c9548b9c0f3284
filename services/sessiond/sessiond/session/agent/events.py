"""Translates an item of the agent into events for the machines: of a line, a start or an end. Decides nothing."""

import uuid
from dataclasses import replace
from typing import Final

from sessiond.agent import protocol
from sessiond.agent import state as st
from sessiond.session.agent.link import AgentLink

HISTORY_LOST: Final = "history-lost"
"""Why an agent ends if its conversation is gone: the agent died before it stored it, or somebody deleted it."""


def line_events(message: protocol.Message, agent: st.Agent, link: AgentLink) -> list[st.Event]:
    """Return the events of a line. For the answer to a fence request, one says whether the tree has other processes."""
    got = st.Got(message)
    if isinstance(message, protocol.Response) and agent.requests.get(message.request_id) == "fence":
        return [st.TreeExamined(link.strays), got]
    return [got]


def exit_events(event: st.Exited, conversation: str) -> list[st.Event]:
    """Return the events of a process's end. Without its history the agent begins a new conversation."""
    if f"No conversation found with session ID: {conversation}" in event.stderr:
        return [st.BeginConversation(str(uuid.uuid4()), HISTORY_LOST), replace(event, why=HISTORY_LOST)]
    return [event]
