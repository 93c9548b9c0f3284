"""Demands as JSON, for Redis. Pure."""

from dataclasses import fields
from typing import Any

import orjson

from sessiond_webhook.demands.comment import Comment, Person, Source
from sessiond_webhook.demands.machine import Demand, Note, State


class BadRecord(ValueError):
    """A stored record cannot be read."""


def dump(demand: Demand) -> bytes:
    """JSON of a demand."""
    return orjson.dumps(demand)


def load(data: bytes | str) -> Demand:
    """The demand of this JSON. Raises BadRecord."""
    try:
        found = orjson.loads(data)
        found["comment"] = comment_of(found["comment"])
        found["state"] = State(found["state"])
        found["note"] = Note(**_known(Note, found["note"])) if found["note"] else None
        return Demand(**_known(Demand, found))
    except (KeyError, TypeError, ValueError) as error:
        raise BadRecord(f"a demand's record: {error}") from error


def dump_comment(comment: Comment) -> bytes:
    """JSON of a comment."""
    return orjson.dumps(comment)


def load_comment(data: bytes | str) -> Comment:
    """The comment of this JSON. Raises BadRecord."""
    try:
        return comment_of(orjson.loads(data))
    except (KeyError, TypeError, ValueError) as error:
        raise BadRecord(f"a comment's record: {error}") from error


def comment_of(found: dict[str, Any]) -> Comment:
    """From JSON values. Raises KeyError, TypeError, ValueError."""
    values = _known(Comment, found)
    values["author"] = Person(**found["author"])
    values["source"] = Source(found["source"])
    values["labels"] = tuple(found.get("labels") or ())
    return Comment(**values)


def _known(kind: Any, found: dict[str, Any]) -> dict[str, Any]:
    """A newer version may have stored more than this one knows."""
    names = {f.name for f in fields(kind)}
    return {name: value for name, value in found.items() if name in names}
