"""The owner loop's inbox: what requests ask and what the agent says, in the order in which they came.

Request greenlets put calls in and wait; the loop takes them out one by one and answers each once.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gevent
from gevent.event import AsyncResult
from gevent.queue import Empty, Queue

from sessiond.lock import events as ev
from sessiond.problems import Problem, away, not_owner, problem_of
from sessiond.session.agent.link import FromAgent
from sessiond.session.callers.waiters import Parked
from sessiond.session.pipeline.commits import NotApplied
from sessiond.store.store import Deposed


class Answered(Exception):
    """The caller was told already; the step is dropped."""


@dataclass(slots=True)
class Call:
    """A request in the inbox: what to do in the loop, and where its answer goes."""

    work: Callable[[], Any]
    reply: "AsyncResult[Any]"
    at: float
    parked: Parked | None = None
    patient: bool = False
    """What it asks for must not be asked for twice: once it is being served, it is told what became of it, however
    long Redis is away, and never just to ask again."""

    def refuse(self, problem: Exception) -> None:
        """Answers with an error, once."""
        if self.parked is not None:
            self.parked.refuse(problem)
        if not self.reply.ready():
            self.reply.set_exception(problem)


Item = Call | FromAgent | None
"""None only wakes the loop."""


class Inbox:
    """One session's inbox."""

    def __init__(self) -> None:
        self._queue: Queue[Item] = Queue()
        self._serving: Call | None = None
        self.closed: Problem | None = None
        """Why nothing is taken any more."""
        self.away = False
        """Redis cannot be reached: nothing is taken until it is back."""

    # ---- for request greenlets ---------------------------------------------------------------

    def ask(self, work: Callable[[], Any], *, patient: bool = False) -> Any:
        """Runs `work` in the owner loop and returns its answer. Raises Problem."""
        self.door()
        return self.post(work, patient=patient).reply.get()

    def door(self) -> None:
        """Raises Problem while nothing is taken."""
        if self.closed is not None:
            raise self.closed
        if self.away:
            raise away()

    def post(self, work: Callable[[], Any], parked: Parked | None = None, *, patient: bool = False) -> Call:
        """Has the owner loop run `work`, whatever the door says. Never blocks."""
        call = Call(work, AsyncResult(), time.monotonic(), parked, patient)
        self._queue.put(call)
        return call

    def put(self, item: FromAgent) -> None:
        """What comes from the agent. Never blocks."""
        self._queue.put(item)

    def wake(self) -> None:
        """Has the loop look around. Never blocks."""
        self._queue.put(None)

    # ---- for the loop ------------------------------------------------------------------------

    def take(self, seconds: float) -> Item:
        """The next item; None too when none came in time."""
        try:
            return self._queue.get(timeout=max(0.0, seconds))
        except Empty:
            return None

    def oldest(self) -> float | None:
        """When the call came in that has waited longest; None when none waits."""
        return next((item.at for item in self._queue.queue if isinstance(item, Call)), None)

    @property
    def serving(self) -> bool:
        """Whether a request's call is being run."""
        return self._serving is not None

    @property
    def told(self) -> bool:
        """Whether the call that is run was answered meanwhile."""
        return self._serving is not None and self._serving.reply.ready()

    def serve(self, call: Call) -> None:
        """Runs the call and answers it. Raises what no caller can be told: a step that must not be."""
        self._serving = call
        try:
            answer = call.work()
        except (Answered, NotApplied):
            call.refuse(self.closed or away())
        except Problem as problem:
            call.refuse(problem)
        except ev.Refused as refused:
            call.refuse(problem_of(refused))
        except Deposed as deposed:
            call.refuse(not_owner(deposed.url))
            raise
        except BaseException:
            call.refuse(Problem("internal", 500, "The owner loop refused the step"))
            raise
        else:
            # The waiter, told inside the step, runs before the releaser.
            gevent.sleep(0)
            call.reply.set(answer)
        finally:
            self._serving = None

    def refuse_calls(self, problem: Problem) -> None:
        """Refuses the call that is being run and all that wait here; what the agent said stays."""
        if self._serving is not None and not self._serving.patient:
            self._serving.refuse(problem)
        kept: list[FromAgent] = []
        while not self._queue.empty():
            item = self._queue.get()
            if isinstance(item, Call):
                item.refuse(problem)
            elif item is not None:
                kept.append(item)
        for one in kept:
            self._queue.put(one)
