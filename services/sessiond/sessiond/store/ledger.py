"""Decoding of ledger entries from the Redis stream. Pure."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from sessiond_common.clock import format_time


def at_of(entry_id: str) -> str:
    """Return the time of a stream id in RFC 3339 UTC. It comes from Redis's clock."""
    return format_time(datetime.fromtimestamp(int(entry_id.partition("-")[0]) / 1000, UTC))


def entry_of(entry_id: str, fields: Any) -> dict[str, Any]:
    """Return a stream entry as {"id", "at", "epoch", "version", "event", …data}."""
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
