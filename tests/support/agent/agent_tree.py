"""A session whose agent has a process tree, and a check of which processes remain."""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sessiond.client import SessiondError
from sessiond.verify import verify
from support.agent.strays import Strays
from support.servers import Sessiond, alive, eventually, tree


class TreeScene:
    """A session whose worker's turn leaves stray processes. The worker holds its lease until it loses it."""

    def __init__(
        self,
        service: Sessiond,
        session: str,
        tool: Callable[[str], str],
        ways: Sequence[str] = (),
        ttl: float = 30.0,
        until: str = "turn-started",
    ):
        """Start the worker's turn and wait until its stray processes run.

        `tool` returns the prompt that runs a shell command. `ttl` is the `lease_ttl` that the worker assumes. `until`
        is the ledger event to wait for afterwards.
        """
        self.service, self.session, self.client = service, session, service.client()
        self.strays, self.results = Strays(*ways), list[Any]()
        self._prompt, self._ttl, self._over = tool(self.strays.command), ttl, threading.Event()
        self._thread = threading.Thread(target=self._hold, daemon=True)
        self._thread.start()
        self.strays.wait()
        eventually(lambda: self.events(until))
        guard = self.events("agent-started")[-1]["guard"]
        self.guard, self.agent = int(guard["pid"]), int(guard["agent_pid"])
        self._tree = tree(self.guard)
        assert len(self._tree) > len(self.strays.ways)

    def _hold(self) -> None:
        try:
            client = self.service.client()
            with client.lease(self.session, kind="worker", key="w", lease_ttl=self._ttl) as lease:
                self.results.append(lease.turn(self._prompt).result())
                while not lease.lost.is_set() and not self._over.wait(0.05):
                    pass
        except SessiondError as error:
            self.results.append(error)

    @property
    def place(self) -> Path:
        """The agent's working directory."""
        return self.service.state / "work" / self.session

    @property
    def fence(self) -> int:
        return int(self.client.view(self.session)["holder"]["fence"])

    def ledger(self) -> list[dict[str, Any]]:
        return self.client.ledger(self.session)

    def events(self, event: str) -> list[dict[str, Any]]:
        return [e for e in self.ledger() if e["event"] == event]

    def until_draining(self) -> None:
        eventually(lambda: self.events("draining"))

    def until_turn_over(self) -> None:
        """Wait for the turn's end. The strays still run."""
        eventually(lambda: self.results, 20)
        assert set(self.strays.found().values()) == set(self.strays.ways)

    def kill_agent(self) -> None:
        """Send SIGKILL to the agent. Return when it is reaped."""
        self._kill(self.agent)

    def kill_guard(self) -> None:
        """Send SIGKILL to the guard. Return when its agent is reaped."""
        self._kill(self.guard)

    def _kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: self.events("agent-reaped"), 30)

    def leave(self) -> None:
        """Release the worker's lease, if it has one."""
        self._over.set()
        self._thread.join(40)
        assert not self._thread.is_alive()

    def left(self) -> list[str]:
        """Return the processes of the original tree and of the strays that still run."""
        return [f"pid {p.pid}" for p in self._tree if alive(p)] + sorted(self.strays.found().values())

    def next_turn(self) -> list[str]:
        """Run a handler's turn. Return the processes of the old tree that still ran when its agent had answered."""
        with self.service.client().lease(self.session, key="next", timeout=60) as lease:
            result = lease.turn("#say next").result()
            assert result.text == "next", result
            left = self.left()
        self.leave()
        return left

    def check(self) -> str:
        """Check in the ledger that no two agents ran at the same time. Return why the first one was reaped."""
        running, whys = False, []
        for entry in self.ledger():
            if entry["event"] == "agent-starting":
                assert not running, f"{self.session}: an agent was started before the previous one was reaped"
                running = True
            elif entry["event"] == "agent-reaped":
                running = False
                whys.append(entry["why"])
        found = verify(self.ledger()).violations
        assert found == [], found
        return str(whys[0]) if whys else "kept"
