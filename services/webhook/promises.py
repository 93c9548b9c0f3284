"""A promise becomes a task, within the transaction that stores the answer."""

from typing import Any

from webhook.answering import Answer
from webhook.demand import Demand


class Promises:
    def __init__(self, connection: Any, jobs: Any) -> None: ...
    def task_of(self, demand: Demand) -> str:
        return "t"

    def stage(self, pipe: object, demand: Demand, answer: Answer) -> None: ...
