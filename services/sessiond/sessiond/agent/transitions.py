"""The agent's table of transitions, and the draft of a step. Pure.

ASLEEP -> STARTING -> IDLE -> IN_TURN -> IDLE     any -> STOPPING(why) -> ASLEEP | BROKEN(why)
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum
from typing import Any, Final

from sessiond.agent import state as st
from sessiond.agent.state import Agent, Phase


class Move(Enum):
    """The transitions between the phases."""

    WANTED = "a turn is wanted"
    READY = "initialize is answered"
    SENT = "a prompt is written"
    CLOSED = "the turn is closed"
    STOP = "it is stopped"
    GONE = "its tree is gone"
    GONE_BAD = "its tree is gone and it cannot run"
    RESTED = "it rested, or an operator restarts it"


_ENDS: Final = {Move.STOP: Phase.STOPPING, Move.GONE: Phase.ASLEEP, Move.GONE_BAD: Phase.BROKEN}

MOVES: Final[Mapping[Phase, Mapping[Move, Phase]]] = {
    Phase.ASLEEP: {Move.WANTED: Phase.STARTING},
    Phase.STARTING: {Move.READY: Phase.IDLE, **_ENDS},
    Phase.IDLE: {Move.SENT: Phase.IN_TURN, **_ENDS},
    Phase.IN_TURN: {Move.CLOSED: Phase.IDLE, **_ENDS},
    Phase.STOPPING: {Move.GONE: Phase.ASLEEP, Move.GONE_BAD: Phase.BROKEN},
    Phase.BROKEN: {Move.RESTED: Phase.ASLEEP},
}

ALIVE: Final = frozenset({Phase.STARTING, Phase.IDLE, Phase.IN_TURN})
"""Phases in which a process runs or starts and was not asked to end."""


class BadMove(ValueError):
    """The table does not have this move. The text names the event, the move and the phase."""


class Draft:
    """The step while it is decided. It is the only mutable object of the machine."""

    def __init__(self, agent: Agent, event: object) -> None:
        self.agent = agent
        self.out: list[st.Output] = []
        self._event = type(event).__name__

    def set(self, **changes: Any) -> None:
        """Change fields of the agent, but never its phase."""
        self.agent = replace(self.agent, **changes)

    def turn(self, **changes: Any) -> None:
        """Change fields of the open turn, if there is one."""
        if self.agent.turn is not None:
            self.set(turn=replace(self.agent.turn, **changes))

    def go(self, move: Move, why: str = "") -> None:
        """Make a move of the table.

        Raises:
            BadMove: the table does not have this move from the current phase.
        """
        after = MOVES[self.agent.phase].get(move)
        if after is None:
            raise BadMove(f"agent: {self._event}: {move.value}, in {self.agent.phase.value} {self.agent.why}".rstrip())
        self.agent = replace(self.agent, phase=after, why=why)

    def note(self, event: str, **data: Any) -> None:
        """Add a ledger entry."""
        self.out.append(st.Note(event, data))

    def ask(self, what: str, encode: Callable[[str], bytes]) -> None:
        """Write a control request. It invalidates an earlier fence request."""
        self.set(count=self.agent.count + 1, fenced=False)
        self.set(requests={**self.agent.requests, self.last_request: what})
        self.out.append(st.Write(what, encode(self.last_request)))

    @property
    def last_request(self) -> str:
        """The id of the latest control request."""
        return f"r{self.agent.count}"
