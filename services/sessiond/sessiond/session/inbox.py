"""The inbox of an owner loop: the commands of its callers and the items of its agent, in the order of their arrival.

Request greenlets put commands in and wait. The loop takes them out one by one and replies to each once.
"""

import time
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

from gevent.event import AsyncResult
from gevent.queue import Empty, Queue

from sessiond.problems import Problem, away
from sessiond.session.agent.items import AgentItem
from sessiond.session.commands import Command, WaiterCommand

R = TypeVar("R")


class AlreadyAnswered(Exception):
    """The caller was answered while Redis was away, so its step is dropped."""


@dataclass(slots=True)
class Request(Generic[R]):
    """A command in the inbox, and its one reply."""

    command: Command[R]
    arrived_at: float
    """Monotonic seconds."""
    _reply: "AsyncResult[R]" = field(default_factory=AsyncResult)

    def result(self) -> R:
        """Wait for the reply and return it.

        Raises:
            Problem: the command was refused.
        """
        return cast("R", self._reply.get())

    @property
    def answered(self) -> bool:
        """Whether the command has its reply."""
        return self._reply.ready()

    def reply(self, answer: R) -> None:
        """Give the reply."""
        self._reply.set(answer)

    def refuse(self, problem: Exception) -> None:
        """Reply with an error; a second reply is dropped."""
        if isinstance(self.command, WaiterCommand):
            self.command.waiter.refuse(problem)
        if not self.answered:
            self._reply.set_exception(problem)


Item = Request[Any] | AgentItem | None
"""None only wakes the loop."""


class Inbox:
    """One session's inbox."""

    def __init__(self) -> None:
        self._queue: Queue[Item] = Queue()
        self.serving: Request[Any] | None = None
        """The request that the loop handles now."""
        self.closed: Problem | None = None
        """Why the session takes no commands any more."""
        self.away = False
        """Redis cannot be reached, so no command is taken until it is back."""
        self.doubted = False
        """The loop must check whether Redis can be reached."""

    # ---- for other greenlets -----------------------------------------------------------------

    def ask(self, command: Command[R]) -> R:
        """Let the owner loop handle a command, and return its reply.

        Raises:
            Problem: the session takes no commands now, or refused this one.
        """
        self.check_open()
        return self.post(command).result()

    def check_open(self) -> None:
        """Check that the session takes commands.

        Raises:
            Problem: it does not.
        """
        if self.closed is not None:
            raise self.closed
        if self.away:
            raise away()

    def post(self, command: Command[R]) -> Request[R]:
        """Let the owner loop handle a command, even while it takes none from callers. Never blocks."""
        request = Request(command, time.monotonic())
        self._queue.put(request)
        return request

    def put(self, item: AgentItem) -> None:
        """Add an item of the agent. Never blocks."""
        self._queue.put(item)

    def doubt(self) -> None:
        """Make the loop check Redis: the owner record could not be renewed, or Redis lost writes. Never blocks."""
        if not self.away:
            self.doubted = True
            self._queue.put(None)

    def close(self, problem: Problem) -> None:
        """Take no more commands, for this reason. The first reason counts. Never blocks."""
        if self.closed is None:
            self.closed = problem
            self._queue.put(None)

    # ---- for the loop ------------------------------------------------------------------------

    def take(self, seconds: float) -> Item:
        """Return the next item, or None if none came in time."""
        try:
            return self._queue.get(timeout=max(0.0, seconds))
        except Empty:
            return None

    def oldest(self) -> float | None:
        """Return when the request arrived that has waited longest; None if none waits."""
        return next((item.arrived_at for item in self._queue.queue if isinstance(item, Request)), None)

    @property
    def serving_answered(self) -> bool:
        """Whether the request that is handled now has its reply."""
        return self.serving is not None and self.serving.answered

    def refuse_requests(self, problem: Problem) -> None:
        """Refuse the request that is handled now and all waiting requests. Keep the items of the agent."""
        if self.serving is not None and not self.serving.command.patient:
            self.serving.refuse(problem)
        kept: list[AgentItem] = []
        while not self._queue.empty():
            item = self._queue.get()
            if isinstance(item, Request):
                item.refuse(problem)
            elif item is not None:
                kept.append(item)
        for one in kept:
            self._queue.put(one)
