"""Removes secrets, and text that people and agents wrote, from log lines."""

from collections.abc import Mapping, MutableMapping
from typing import Any, Final

HIDDEN: Final = frozenset({"secret", "token", "authorization", "prompt", "text", "body"})
"""Hidden keys, in any case. A key that ends with one of them after _ or - is hidden too, as `lease_secret`."""
LEFT_OUT: Final = "[left out]"


def redact(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace the values of hidden keys, at every depth. A structlog processor."""
    for name, value in event.items():
        event[name] = LEFT_OUT if hidden(name) else _inside(value)
    return event


def hidden(name: object) -> bool:
    """Return whether log lines hide the value of this key."""
    return str(name).lower().replace("-", "_").rpartition("_")[2] in HIDDEN


def _inside(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: LEFT_OUT if hidden(name) else _inside(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_inside(one) for one in value]
    return value
