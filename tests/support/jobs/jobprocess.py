"""Processes around sessiond for tests: handlers, posters and workers, started with `python -m`."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from support.servers import FaultPoints, eventually, kill_left, tree

QUICK = {"RUN_TTL": "3", "SWEEP_SECONDS": "0.5", "WORKER_SWEEP_SECONDS": "0.5", "TASK_CLAIM_TTL": "3"}
"""Short times, so that tests detect the death of a process soon. Seconds."""


class JobProcess(FaultPoints):
    """One process of `module`, with its log in a file."""

    def __init__(self, module: str, place: Path, env: Mapping[str, str]) -> None:
        self.module, self.hooks = module, place / "hooks"
        self.hooks.mkdir(parents=True, exist_ok=True)
        self._env = {**QUICK, **env}
        self._log = place / f"{module}.log"
        self._seen: dict[int, psutil.Process] = {}
        self.start()

    def start(self) -> None:
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("SESSIOND_", "ANTHROPIC_", "CLAUDE", "GITHUB_"))
        }
        env = {**kept, "HOOKS_DIR": str(self.hooks), **self._env}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module], env=env, stdout=log, stderr=log, start_new_session=True
            )
        self.pid = self.process.pid

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def log_text(self) -> str:
        return self.log()[-2000:]

    def horse(self) -> psutil.Process:
        """Return the work-horse that runs a job now."""
        found = eventually(lambda: psutil.Process(self.pid).children(), 10, f"a work-horse: {self.log_text()}")
        return found[0]  # type: ignore[no-any-return]

    def remember(self) -> None:
        self._seen |= {p.pid: p for p in tree(self.pid)}

    def kill9(self, *, horse: bool = True, parent: bool = True) -> None:
        """Kill the parent, its work-horse, or both, with SIGKILL."""
        self.remember()
        victims = [p.pid for p in tree(self.pid)][1:] if horse else []
        for pid in ([self.pid] if parent else []) + victims:
            os.kill(pid, signal.SIGKILL)
        if parent:
            self.process.wait()

    def stop(self, seconds: float = 20) -> int:
        """Send SIGTERM and wait for the end. Returns the exit status."""
        self.remember()
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(seconds)

    def close(self) -> None:
        for held in self.hooks.glob("*.hold"):
            held.unlink()
        self.remember()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        kill_left(self._seen.values())
