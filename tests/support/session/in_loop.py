"""A command for tests only. It runs a function in the owner loop."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from sessiond.session.commands import Command
from sessiond.session.handlers.dispatch import HANDLERS, Handlers
from sessiond.session.pipeline.runner import Pipeline


@dataclass(frozen=True, slots=True)
class RunInLoop(Command[Any]):
    work: Callable[[], Any]


def run_in_loop(pipeline: Pipeline, command: RunInLoop) -> Any:
    return command.work()


TEST_HANDLERS: Final[Handlers] = {**HANDLERS, RunInLoop: run_in_loop}
