"""Calls without a method of the client, and the ledger's entries by event."""

from typing import Any

from sessiond.client import Client

SESSION = "octo/hello"


def events(client: Client, name: str) -> list[dict[str, Any]]:
    return [e for e in client.ledger(SESSION) if e["event"] == name]


def lease_call(client: Client, method: str, path: str, secret: str) -> Any:
    return client.transport.call(method, path, session=SESSION, secret=secret).body
