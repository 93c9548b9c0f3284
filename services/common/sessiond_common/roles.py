"""The roles of keys: sessiond checks them, and `ops` creates one key for each."""

from enum import StrEnum


class Role(StrEnum):
    """What a key may do. Every role may read. `handler` and `worker` may take their own kind of ticket, `admin` any."""

    HANDLER = "handler"
    WORKER = "worker"
    ADMIN = "admin"
    VIEWER = "viewer"
