"""Calls that the client has no method for, and the ledger by event."""

from typing import Any

from sessiond.client import Client

SESSION = "octo/hello"


def events(client: Client, name: str) -> list[dict[str, Any]]:
    return [e for e in client.ledger(SESSION) if e["event"] == name]


def lease_call(client: Client, method: str, path: str, secret: str) -> Any:
    return client.transport.call(method, path, session=SESSION, secret=secret).body
