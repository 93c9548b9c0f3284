"""Demands and comments as JSON, for Redis. Pure."""

from dataclasses import fields
from typing import Any

import orjson

from sessiond_webhook.demands.comment import Comment, CommentSource, Person
from sessiond_webhook.demands.machine import Demand, DemandState, Note


class BadRecord(ValueError):
    """A stored record is not valid."""


def dump(demand: Demand) -> bytes:
    """Return the JSON of a demand."""
    return orjson.dumps(demand)


def load(data: bytes | str) -> Demand:
    """Return the demand of this JSON.

    Raises:
        BadRecord: the JSON is not a demand.
    """
    try:
        found = orjson.loads(data)
        found["comment"] = comment_of(found["comment"])
        found["state"] = DemandState(found["state"])
        found["note"] = Note(**_known(Note, found["note"])) if found["note"] else None
        return Demand(**_known(Demand, found))
    except (KeyError, TypeError, ValueError) as error:
        raise BadRecord(f"the record of a demand is not valid: {error}") from error


def dump_comment(comment: Comment) -> bytes:
    """Return the JSON of a comment."""
    return orjson.dumps(comment)


def load_comment(data: bytes | str) -> Comment:
    """Return the comment of this JSON.

    Raises:
        BadRecord: the JSON is not a comment.
    """
    try:
        return comment_of(orjson.loads(data))
    except (KeyError, TypeError, ValueError) as error:
        raise BadRecord(f"the record of a comment is not valid: {error}") from error


def comment_of(found: dict[str, Any]) -> Comment:
    """Return the comment of these JSON values. Raises KeyError, TypeError, ValueError."""
    values = _known(Comment, found)
    values["author"] = Person(**found["author"])
    values["source"] = CommentSource(found["source"])
    values["labels"] = tuple(found.get("labels") or ())
    return Comment(**values)


def _known(kind: Any, found: dict[str, Any]) -> dict[str, Any]:
    """Return the members that this version knows. A newer version may have stored more."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in found.items() if name in names}
