"""An answer becomes durable: its text, the task that it promises, and the wish to post it, in one transaction.

So the task is there before the sentence that promises it can be read by anybody.
"""

from dataclasses import dataclass
from typing import Any

from sessiond_common.clock import now_text
from sessiond_webhook.demands import machine as d
from sessiond_webhook.demands.machine import Demand, State
from sessiond_webhook.demands.store import Demands, demand_key
from sessiond_webhook.handler.prompts import Promise
from sessiond_webhook.handler.turns import Answer
from sessiond_worker.tasks.model import NewTask, TaskSource
from sessiond_worker.tasks.store import Tasks


def task_of(demand: Demand, promise: Promise) -> NewTask:
    """The task that keeps this promise; its key is the demand's, so that a promise made twice is one task."""
    comment = demand.comment
    source = TaskSource(kind="demand", number=comment.number, url=comment.url or None, demand=demand.key)
    return NewTask(
        key=f"promise:{demand.key}", session=demand.session, title=promise.title, instructions=promise.instructions,
        source=source, asked_by=comment.author.login,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Answers:
    """Stores answers."""

    demands: Demands
    tasks: Tasks

    def store(self, demand: Demand, holder: str, answer: Answer) -> Demand:
        """The record after it. Raises demand.NotNow, NotHolder, Edited; ValueError for a promise no task can be."""

        def work(pipe: Any) -> Demand:
            known = self.demands.read(pipe, demand.key)
            if known.state is State.ANSWERED and known.holder == holder:
                pipe.multi()
                return known  # a call whose answer was lost had been done
            after = d.answered(known, holder, demand.revision, answer.text, now_text())
            new = task_of(known, answer.promise) if answer.promise is not None else None
            living = self.tasks.living(pipe, new.key) if new is not None else None
            pipe.multi()
            if new is not None:
                after = d.promising(after, living.id if living is not None else self.tasks.stage(pipe, new))
            self.demands.save(pipe, after)
            self.demands.stage_post(pipe, after)
            return after

        return self.demands.transact(work, demand_key(demand.key))
