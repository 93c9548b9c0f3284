"""A ledger entry: from the stream in Redis to what callers read. Pure."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from sessiond_common.clock import format_time


def at_of(entry_id: str) -> str:
    """The moment of a stream id (Redis's own clock), RFC 3339 UTC."""
    return format_time(datetime.fromtimestamp(int(entry_id.partition("-")[0]) / 1000, UTC))


def entry_of(entry_id: str, fields: Any) -> dict[str, Any]:
    """{"id", "at", "epoch", "version", "event", …data} of one stream entry."""
    if not isinstance(fields, Mapping):
        fields = dict(zip(fields[::2], fields[1::2], strict=True))
    fixed = {
        "id": entry_id,
        "at": at_of(entry_id),
        "epoch": int(fields["epoch"]),
        "version": int(fields["version"]),
        "event": fields["event"],
    }
    return {**orjson.loads(fields["data"]), **fixed}
