"""What comes from the agent, made into steps: its start, its lines, its end, and the questions that it asks."""

import contextlib
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import gevent

from sessiond.agent import machine as agent_machine
from sessiond.agent import protocol
from sessiond.agent import state as st
from sessiond.agent.transitions import ALIVE
from sessiond.session.agent.link import AgentLink, FromAgent
from sessiond.session.callers.turns import TurnBook
from sessiond.session.inbox import Answered, Inbox
from sessiond.session.pipeline.steps import Steps
from sessiond.session.state import Standing
from sessiond.settings import Settings
from sessiond_common.fault_points import hold_in

YIELD_EVERY = 64
HISTORY_LOST: Final = "history-lost"
"""Nobody's failure: the agent died before it wrote its conversation down, or somebody deleted it."""


class AgentLines:
    """One session's. Used by the owner loop only."""

    def __init__(
        self, settings: Settings, standing: Standing, inbox: Inbox, link: AgentLink, steps: Steps, turns: TurnBook,
        fire: Callable[[], None],
    ) -> None:  # fmt: skip
        """`fire` gives the machines the deadlines that have run out."""
        self._settings, self._standing, self._inbox = settings, standing, inbox
        self._link, self._steps, self._turns, self._fire = link, steps, turns, fire

    def take(self, item: FromAgent) -> None:
        """Steps for all that `item` says; what an earlier process said is dropped."""
        if not self._link.accepts(item):
            return
        if item.lines is not None:
            self._lines(item.lines)
        elif isinstance(item.event, st.Fault):
            self._steps.step(item.event)
        elif isinstance(item.event, st.Spawned):
            self._steps.step(item.event, ledger=[("agent-started", {"guard": self._link.guard})])
        elif isinstance(item.event, st.Exited):
            self._exited(item.event)

    def _exited(self, event: st.Exited) -> None:
        if f"No conversation found with session ID: {self._standing.agent.conversation}" in event.stderr:
            self._steps.step(st.Afresh(str(uuid.uuid4()), HISTORY_LOST), replace(event, why=HISTORY_LOST))
        else:
            self._steps.step(event)

    def _lines(self, batch: list[bytes]) -> None:
        for number, text in enumerate(batch, 1):
            if number % YIELD_EVERY == 0:
                gevent.sleep(0)
                with contextlib.suppress(Answered):  # one read may be some thousand steps: no deadline waits for them
                    self._fire()
            if self._standing.agent.phase not in ALIVE:
                break  # of a process that was asked to end no line counts
            if not text.strip():
                continue
            try:
                line = protocol.parse(text)
            except protocol.ProtocolError as error:
                self._steps.step(st.Fault("garbage", str(error)))
                continue
            self._line(line, len(text))
        self._link.flow()

    def _line(self, line: protocol.Line, size: int) -> None:
        """Most lines are only forwarded: no step is made for them."""
        message, events = line.message, list[st.Event]()
        if isinstance(message, protocol.Response) and self._standing.agent.requests.get(message.request_id) == "fence":
            events.append(st.Looked(self._link.strays))
        events.append(st.Got(message))
        agent, outputs = agent_machine.decide(self._standing.agent, st.Got(message))
        if any(isinstance(o, st.Forward) for o in outputs):
            self._turns.feed(line.raw, size)
        if agent is self._standing.agent and all(isinstance(o, st.Forward) for o in outputs):
            return
        plan = self._steps.step(*events)
        for output in plan.outputs:
            if isinstance(output, st.Asked):
                self._judge(output.request)

    def _judge(self, request: str) -> None:
        """Answers the question at once; only a test's hook keeps it open, outside of the loop."""

        def held() -> None:
            hold_in(self._settings.hooks_dir, "question")
            self._inbox.post(lambda: self._steps.step(st.Answer(request)))

        if self._settings.hooks_dir is None:
            self._steps.step(st.Answer(request))
        else:
            gevent.spawn(held)
