"""Stores an answer, the task that it promises and the pending post in one transaction.

So the task exists before anybody can read the sentence that promises it.
"""

from dataclasses import dataclass
from typing import Any

from sessiond_common.clock import now_text
from sessiond_webhook.demands import machine
from sessiond_webhook.demands.machine import Demand, DemandState
from sessiond_webhook.demands.store import Demands, demand_key
from sessiond_webhook.handler.prompts import Promise
from sessiond_webhook.handler.turns import Answer
from sessiond_worker.tasks.model import NewTask, TaskSource
from sessiond_worker.tasks.store import Tasks


def task_for(demand: Demand, promise: Promise) -> NewTask:
    """Return the task of this promise. Its key contains the demand's key, so a repeated promise is one task."""
    comment = demand.comment
    source = TaskSource(kind="demand", number=comment.number, url=comment.url or None, demand=demand.key)
    return NewTask(
        key=f"promise:{demand.key}", session=demand.session, title=promise.title, instructions=promise.instructions,
        source=source, asked_by=comment.author.login,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class AnswerStore:
    """Stores answers in Redis."""

    demands: Demands
    tasks: Tasks

    def store(self, demand: Demand, holder: str, answer: Answer) -> Demand:
        """Store the answer of this holder and return the record.

        Raises:
            MoveRefused, NotHolder, CommentChanged: the demand does not take this answer; nothing has changed.
            ValueError: the promise cannot become a task.
        """

        def work(pipe: Any) -> Demand:
            known = self.demands.read(pipe, demand.key)
            if known.state is DemandState.ANSWERED and known.holder == holder:
                pipe.multi()
                return known  # an earlier call succeeded, but its reply was lost
            after = machine.answered(known, holder, demand.revision, answer.text, now_text())
            new = task_for(known, answer.promise) if answer.promise is not None else None
            active = self.tasks.find_active(pipe, new.key) if new is not None else None
            pipe.multi()
            if new is not None:
                after = machine.promising(after, active.id if active is not None else self.tasks.stage(pipe, new))
            self.demands.save(pipe, after)
            self.demands.stage_post(pipe, after)
            return after

        return self.demands.transact(work, demand_key(demand.key))
