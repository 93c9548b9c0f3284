"""What is never rendered in a log line: secrets, and what people and agents wrote."""

from collections.abc import Mapping, MutableMapping
from typing import Any, Final

HIDDEN: Final = frozenset({"secret", "token", "authorization", "prompt", "text", "body"})
"""Keys, and ends of keys behind _ or -, in any case: `lease_secret` too. Their values are left out at every depth."""
LEFT_OUT: Final = "[left out]"


def redact(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: the same event, without the values under such keys."""
    for name, value in event.items():
        event[name] = LEFT_OUT if hidden(name) else _inside(value)
    return event


def hidden(name: object) -> bool:
    """Whether the value under this key is never rendered."""
    return str(name).lower().replace("-", "_").rpartition("_")[2] in HIDDEN


def _inside(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: LEFT_OUT if hidden(name) else _inside(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_inside(one) for one in value]
    return value
