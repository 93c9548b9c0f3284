"""The table of handlers: complete, and typed as the commands are."""

import dataclasses
import inspect
from typing import Any, get_args, get_type_hints

import pytest

from sessiond.session import commands
from sessiond.session.agent.items import AgentItem
from sessiond.session.commands import Command
from sessiond.session.handlers.dispatch import HANDLERS
from sessiond.session.pipeline.runner import Pipeline


def command_types() -> set[type]:
    """The commands of the module: each class of it that is no base of another."""
    found = {one for one in vars(commands).values() if inspect.isclass(one) and issubclass(one, Command)}
    return {one for one in found if not any(issubclass(other, one) for other in found - {one})}


def reply_type(command: type) -> Any:
    """The type with which the command's class names its reply."""
    for one in command.__mro__:
        for base in getattr(one, "__orig_bases__", ()):
            if getattr(base, "__origin__", None) is Command:
                return get_args(base)[0]
    raise AssertionError(f"{command.__name__} names no reply")


def test_every_command_has_a_handler_and_every_handler_a_command() -> None:
    assert set(HANDLERS) == command_types() | set(get_args(AgentItem))
    assert len(set(HANDLERS.values())) == len(HANDLERS)


@pytest.mark.parametrize("item", HANDLERS, ids=lambda item: item.__name__)
def test_a_handler_takes_its_command_and_returns_its_reply(item: type) -> None:
    handler = HANDLERS[item]
    hints = get_type_hints(handler)
    parameters = [hints[name] for name in inspect.signature(handler).parameters]
    assert parameters == [Pipeline, item]
    reply = reply_type(item) if issubclass(item, Command) else None
    assert hints["return"] == (type(None) if reply is None else reply)


@pytest.mark.parametrize("item", HANDLERS, ids=lambda item: item.__name__)
def test_an_item_of_the_inbox_is_frozen(item: type) -> None:
    assert dataclasses.is_dataclass(item)
    assert item.__dataclass_params__.frozen  # type: ignore[attr-defined]
