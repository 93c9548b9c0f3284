"""Load: handlers and one worker for each session in one process, each a greenlet with its own connection.

load_generator.py URL KEY SESSIONS HANDLERS ROUNDS GRANTS

In each round a session's handlers share GRANTS leases: take, wait, confirm (every fourth lease; the others stay
unconfirmed), release. One lease runs a turn. The handlers then pause until the worker is granted. Its turn is endless,
and the next round's first ticket preempts it. Prints one line of JSON: {"grants", "turns", "preempted", "twice",
"errors"}; `twice` counts secrets or fences that were granted twice.
"""

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import sys  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
from gevent.event import Event  # noqa: E402

from sessiond.client import LeaseLost, connect  # noqa: E402
from sessiond.client.transport import Transport  # noqa: E402
from sessiond.client.turns import Turn  # noqa: E402

WAIT = 120.0
ENDLESS = "#tokens 1000000\n#pace 20ms"


class Session:
    """The callers of one session."""

    def __init__(self, name: str, url: str, key: str, handlers: int, rounds: int, grants: int) -> None:
        self.name, self._url, self._key = name, url, key
        self._handlers, self._rounds, self._grants = handlers, rounds, grants
        self.counts: dict[str, Any] = {"grants": 0, "turns": 0, "preempted": 0, "twice": 0, "errors": []}
        self._known: set[object] = set()
        self._worker_holds = Event()

    def run(self) -> None:
        worker = gevent.spawn(self._record_errors, self._work)
        transports = [connect(self._url, self._key).transport for _ in range(self._handlers)]
        for number in range(self._rounds):
            self._worker_holds.wait(WAIT)
            self._worker_holds.clear()
            left = iter(range(self._grants))
            gevent.joinall(
                [gevent.spawn(self._record_errors, self._handle, transport, number, left) for transport in transports]
            )
        worker.join(WAIT)

    def _record_errors(self, work: Any, *given: Any) -> None:
        try:
            work(*given)
        except Exception as error:
            self.counts["errors"].append(f"{self.name}: {error!r}")

    def _call(
        self, transport: Transport, method: str, path: str, body: object = None, secret: str | None = None
    ) -> Any:
        return transport.call(method, path, session=self.name, body=body, secret=secret, timeout=WAIT + 10).body

    def _granted(self, transport: Transport, ticket: str, holder: str, claim: bool = True) -> Any:
        while True:
            answer = self._call(transport, "POST", f"/tickets/{ticket}/wait", {"holder": holder, "wait": WAIT})
            if answer["state"] == "granted":
                break
        lease = answer["lease"]
        if claim:
            self._call(transport, "POST", "/lease/renew", secret=lease["secret"])
        self.counts["grants"] += 1
        for one in (lease["fence"], lease["secret"]):
            self.counts["twice"] += one in self._known
            self._known.add(one)
        return lease

    def _turn(self, transport: Transport, secret: str, prompt: str) -> str:
        stream = transport.stream("POST", "/turns", session=self.name, body={"prompt": prompt}, secret=secret)
        self.counts["turns"] += 1
        return str(Turn(transport, self.name, stream, lambda _: None).result().outcome)

    def _handle(self, transport: Transport, number: int, left: Any) -> None:
        for n in left:
            name = f"{number}-{n}"
            ticket = self._call(transport, "POST", "/tickets", {"kind": "handler", "key": name, "priority": n % 3 + 4})
            lease = self._granted(transport, ticket["id"], name, claim=n % 4 == 0)
            if n == self._grants // 2 and self._turn(transport, lease["secret"], "#say ok") != "completed":
                raise AssertionError("a handler's turn did not complete")
            self._call(transport, "DELETE", "/lease", secret=lease["secret"])

    def _work(self) -> None:
        transport = connect(self._url, self._key).transport
        ticket = self._call(transport, "POST", "/tickets", {"kind": "worker", "key": "task"})["id"]
        for _ in range(self._rounds):
            lease = self._granted(transport, ticket, "worker")
            self._worker_holds.set()
            try:
                self.counts["preempted"] += self._turn(transport, lease["secret"], ENDLESS) == "cancelled"
            except LeaseLost:  # the next round's first ticket preempted the lease before the turn
                self.counts["preempted"] += 1
        lease = self._granted(transport, ticket, "worker")
        self._call(transport, "DELETE", "/lease", secret=lease["secret"])


def main(url: str, key: str, sessions: str, *numbers: str) -> None:
    running = [Session(name, url, key, *map(int, numbers)) for name in sessions.split(",")]
    gevent.joinall([gevent.spawn(one.run) for one in running])
    counts = running[0].counts
    for other in running[1:]:
        for name, value in other.counts.items():
            counts[name] += value
    print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
