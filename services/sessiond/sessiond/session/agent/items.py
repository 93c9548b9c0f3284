"""The items that an agent's process puts into the inbox of its session."""

from dataclasses import dataclass

from sessiond.agent import state as st


@dataclass(frozen=True, slots=True)
class AgentLines:
    """Lines that a process wrote. Processes of a session are numbered from 1."""

    process: int
    lines: list[bytes]


@dataclass(frozen=True, slots=True)
class AgentEvent:
    """The start, a fault or the end of a process. A number below 0 stands for the predecessors' processes."""

    process: int
    event: st.Spawned | st.Fault | st.Exited


AgentItem = AgentLines | AgentEvent
