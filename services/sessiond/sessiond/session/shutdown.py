"""The end of an owner loop: all callers are refused, the agent's tree ends, an open turn is lost."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog

from sessiond.agent import state as st
from sessiond.problems import Problem
from sessiond.session.agent.items import AgentItem
from sessiond.session.handlers.dispatch import Dispatcher
from sessiond.session.inbox import AlreadyAnswered, Request
from sessiond.session.pipeline.commits import NotApplied

log = structlog.get_logger("sessiond.shutdown")

SHUT_SECONDS: Final = 4.0
"""Seconds that the agent's tree may take to end before it is killed."""


class Shutdown:
    """The shutdown of one session's loop."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._pipeline, self._context = dispatcher.pipeline, dispatcher.pipeline.context

    def run(self, problem: Problem) -> None:
        """Refuse all callers with `problem`, end the agent, and return when its tree is gone or the time is over.

        An owner that stops by itself still makes steps, so that the next owner finds a complete record. A deposed owner
        makes no steps.
        """
        inbox, link = self._context.inbox, self._context.link
        owner = problem.type == "stopping"
        self._context.waiters.refuse_all(problem)
        if owner:
            with self._last_step():
                self._pipeline.step(st.Stop("shutdown"))
        link.end()
        ends = time.monotonic() + SHUT_SECONDS
        while link.alive and time.monotonic() < ends:
            item = inbox.take(0.1)
            if isinstance(item, Request):
                item.refuse(problem)
            elif item is not None:
                self._handle(item, owner)
        link.kill()
        inbox.refuse_requests(problem)
        self._context.turns.abandon(problem.type)

    def _handle(self, item: AgentItem, owner: bool) -> None:
        if not owner:
            self._context.link.accepts(item)
            return
        with self._last_step():
            self._dispatcher.handle_agent(item)

    @contextmanager
    def _last_step(self) -> Iterator[None]:
        """Drop a step that can no longer be made."""
        try:
            yield
        except (AlreadyAnswered, NotApplied):
            return
        except Exception:
            log.exception("a step of the shutdown failed", session=self._context.name)
