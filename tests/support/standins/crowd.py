"""Load: handlers and one worker for each session in one process, each a greenlet with its own connection.

crowd.py URL KEY SESSIONS HANDLERS ROUNDS GRANTS

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
        self.told: dict[str, Any] = {"grants": 0, "turns": 0, "preempted": 0, "twice": 0, "errors": []}
        self._known: set[object] = set()
        self._worker_holds = Event()

    def run(self) -> None:
        worker = gevent.spawn(self._guarded, self._work)
        doors = [connect(self._url, self._key).transport for _ in range(self._handlers)]
        for number in range(self._rounds):
            self._worker_holds.wait(WAIT)
            self._worker_holds.clear()
            left = iter(range(self._grants))
            gevent.joinall([gevent.spawn(self._guarded, self._handle, door, number, left) for door in doors])
        worker.join(WAIT)

    def _guarded(self, work: Any, *given: Any) -> None:
        try:
            work(*given)
        except Exception as error:
            self.told["errors"].append(f"{self.name}: {error!r}")

    def _call(self, door: Transport, method: str, path: str, body: object = None, secret: str | None = None) -> Any:
        return door.call(method, path, session=self.name, body=body, secret=secret, timeout=WAIT + 10).body

    def _granted(self, door: Transport, ticket: str, holder: str, claim: bool = True) -> Any:
        while True:
            told = self._call(door, "POST", f"/tickets/{ticket}/wait", {"holder": holder, "wait": WAIT})
            if told["state"] == "granted":
                break
        lease = told["lease"]
        if claim:
            self._call(door, "POST", "/lease/renew", secret=lease["secret"])
        self.told["grants"] += 1
        for one in (lease["fence"], lease["secret"]):
            self.told["twice"] += one in self._known
            self._known.add(one)
        return lease

    def _turn(self, door: Transport, secret: str, prompt: str) -> str:
        stream = door.stream("POST", "/turns", session=self.name, body={"prompt": prompt}, secret=secret)
        self.told["turns"] += 1
        return str(Turn(door, self.name, stream, lambda _: None).result().outcome)

    def _handle(self, door: Transport, number: int, left: Any) -> None:
        for n in left:
            name = f"{number}-{n}"
            ticket = self._call(door, "POST", "/tickets", {"kind": "handler", "key": name, "priority": n % 3 + 4})
            lease = self._granted(door, ticket["id"], name, claim=n % 4 == 0)
            if n == self._grants // 2 and self._turn(door, lease["secret"], "#say ok") != "completed":
                raise AssertionError("a handler's turn did not complete")
            self._call(door, "DELETE", "/lease", secret=lease["secret"])

    def _work(self) -> None:
        door = connect(self._url, self._key).transport
        ticket = self._call(door, "POST", "/tickets", {"kind": "worker", "key": "task"})["id"]
        for _ in range(self._rounds):
            lease = self._granted(door, ticket, "worker")
            self._worker_holds.set()
            try:
                self.told["preempted"] += self._turn(door, lease["secret"], ENDLESS) == "cancelled"
            except LeaseLost:  # the next round's first ticket came before the turn
                self.told["preempted"] += 1
        lease = self._granted(door, ticket, "worker")
        self._call(door, "DELETE", "/lease", secret=lease["secret"])


def main(url: str, key: str, sessions: str, *numbers: str) -> None:
    crowd = [Session(name, url, key, *map(int, numbers)) for name in sessions.split(",")]
    gevent.joinall([gevent.spawn(one.run) for one in crowd])
    told = crowd[0].told
    for other in crowd[1:]:
        for name, value in other.told.items():
            told[name] += value
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
