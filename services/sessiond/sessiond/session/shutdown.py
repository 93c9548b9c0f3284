"""The end of an owner loop: everybody is told, the agent's tree is gone, an open turn is told lost."""

import time
from collections.abc import Callable
from typing import Any

import structlog

from sessiond.agent import state as st
from sessiond.problems import Problem
from sessiond.session.agent.events import AgentLines
from sessiond.session.agent.link import AgentLink, FromAgent
from sessiond.session.callers.turns import TurnBook
from sessiond.session.callers.waiters import Desk
from sessiond.session.inbox import Answered, Call, Inbox
from sessiond.session.pipeline.commits import NotApplied
from sessiond.session.pipeline.steps import Steps

log = structlog.get_logger("sessiond.shutdown")

SHUT_SECONDS = 4.0


class Shutdown:
    """One session's last act."""

    def __init__(
        self, name: str, inbox: Inbox, desk: Desk, link: AgentLink, steps: Steps, lines: AgentLines, turns: TurnBook
    ) -> None:
        self._name, self._inbox, self._desk, self._link = name, inbox, desk, link
        self._steps, self._lines, self._turns = steps, lines, turns

    def run(self, problem: Problem) -> None:
        """Tells everybody `problem`, ends the agent, returns when its tree is gone or the time is over.

        Only an owner that stops of itself still makes steps, so that the next one finds no riddle; one that was
        deposed has nothing to say any more.
        """
        owner = problem.type == "stopping"
        self._desk.refuse_all(problem)
        if owner:
            self._last(lambda: self._steps.step(st.Stop("shutdown")))
        self._link.end()
        ends = time.monotonic() + SHUT_SECONDS
        while self._link.alive and time.monotonic() < ends:
            item = self._inbox.take(0.1)
            if isinstance(item, Call):
                item.refuse(problem)
            elif item is not None:
                self._hear(item, owner)
        self._link.kill()
        self._inbox.refuse_calls(problem)
        self._turns.abandon(problem.type)

    def _hear(self, item: FromAgent, owner: bool) -> None:
        if owner:
            self._last(lambda: self._lines.take(item))
        else:
            self._link.accepts(item)

    def _last(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except (Answered, NotApplied):
            return
        except Exception:
            log.exception("at the end", session=self._name)
