"""The table of handlers is complete, and its types match those of the commands."""

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
    """Return the commands of the module: each class that is not a base of another."""
    found = {one for one in vars(commands).values() if inspect.isclass(one) and issubclass(one, Command)}
    return {one for one in found if not any(issubclass(other, one) for other in found - {one})}


def reply_type(command: type) -> Any:
    """Return the reply type that the command's class declares."""
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
