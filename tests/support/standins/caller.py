"""A caller in its own process. It reads orders as JSON lines from stdin and reports events as JSON lines on stdout.

caller.py URL KEY      {"key": "k1", "kind": "handler", "priority": 5, "delay": 0.02, "hold": 0.01, "prompt": "…"}

`lease_ttl` is the server's. With `abandon` the lease is not released, so that the ticket keeps its place.
"""

import json
import sys
import time
from typing import Any

from sessiond.client import LeaseLost, SessiondError, connect
from sessiond.client.lease import LEASE_TTL


def report(**fields: Any) -> None:
    print(json.dumps({**fields, "at": time.time()}), flush=True)


def main(url: str, key: str) -> None:
    client = connect(url, key)
    report(event="ready")
    for line in sys.stdin:
        order = json.loads(line)
        time.sleep(order.get("delay", 0))
        try:
            with client.lease(
                order.get("session", "octo/hello"), kind=order.get("kind", "handler"), priority=order.get("priority"),
                key=order.get("key"), timeout=order.get("timeout", 60), holder=order.get("holder"),
                lease_ttl=order.get("lease_ttl", LEASE_TTL),
            ) as lease:  # fmt: skip
                report(event="granted", key=order.get("key"), fence=lease.fence, secret=lease.secret)
                if "prompt" in order:
                    result = lease.turn(order["prompt"]).result()
                    report(event="turn", outcome=result.outcome, text=result.text, reason=result.reason)
                lease.lost.wait(order.get("hold", 0))
                report(event="leaving", lost=lease.lost_reason)
                if order.get("abandon"):
                    lease.abandon()
            report(event="done", key=order.get("key"))
        except LeaseLost as lost:
            report(event="done", key=order.get("key"), lost=lost.reason)
        except SessiondError as error:
            report(event="error", error=type(error).__name__, text=str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
