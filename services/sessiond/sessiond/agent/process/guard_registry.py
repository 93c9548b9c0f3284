"""Identities of guards, and the end of a guard that a previous owner left.

The guard of a previous owner must be gone before a session's agent starts. When a previous owner dies, its guard ends
too. The guard of a suspended owner still runs, so the current owner ends it.
"""

import contextlib
import json
import os
import signal
from dataclasses import asdict, dataclass
from pathlib import Path

import gevent
from gevent.socket import wait_read

from sessiond.agent.process import guard as guarding
from sessiond.agent.process.user import User, acting_as
from sessiond_common.private_files import write_private

SWEEP_SECONDS = 2.0
RETRY_SECONDS = 0.5
"""Seconds between two attempts to end processes that are not gone."""
EMPTY_LOOKS = 2
"""Checks in a row that must find nothing. One check can miss a process that forks and exits during it."""


@dataclass(frozen=True, slots=True)
class GuardId:
    """Identifies a guard uniquely, also across restarts of the machine."""

    pid: int
    start_time: int
    """Clock ticks since boot, field 22 of /proc/PID/stat."""
    boot_id: str
    agent_pid: int


class GuardNote:
    """A file on this machine with the running guard's identity, because Redis may lose its latest writes.

    Write it before the first prompt, remove it once the guard is gone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, guard: GuardId) -> None:
        """Replace the file's content.

        Raises:
            OSError: the file cannot be written.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_private(self._path, json.dumps(asdict(guard)))

    def read(self) -> GuardId | None:
        """Return the recorded guard, or None if there is no readable file.

        A machine that lost its files also lost its processes.
        """
        try:
            return GuardId(**json.loads(self._path.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def remove(self, guard: GuardId) -> None:
        """Remove the file unless it names another guard by now."""
        if self.read() == guard:
            self._path.unlink(missing_ok=True)


def boot_id() -> str:
    """Return the kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def guard_alive(guard: GuardId) -> bool:
    """Return whether this guard still runs on this machine. The guard of another machine counts as gone."""
    found = guarding.process(guard.pid)
    alive = found is not None and not found.dead and found.start_time == guard.start_time
    return alive and guard.boot_id == boot_id()


def end_guard(guard: GuardId, seconds: float, user: User | None = None) -> bool:
    """End a guard and its tree: SIGTERM, then SIGKILL after `seconds`. The guard need not be our child.

    Return whether nothing is left. False means that we may not signal it, or that it cannot run (a frozen
    container).
    """
    if not _ended(guard, seconds):
        return False
    return sweep(guard, SWEEP_SECONDS, user)


def _ended(guard: GuardId, seconds: float) -> bool:
    try:
        descriptor = os.pidfd_open(guard.pid)
    except OSError:  # gone by now, or no file descriptor is free
        return not guard_alive(guard)
    try:
        return not guard_alive(guard) or any(
            _ended_by(descriptor, number, seconds) for number in (signal.SIGTERM, signal.SIGKILL)
        )
    finally:
        os.close(descriptor)


def _ended_by(descriptor: int, number: signal.Signals, seconds: float) -> bool:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        signal.pidfd_send_signal(descriptor, number)
    try:
        wait_read(descriptor, timeout=seconds, timeout_exc=TimeoutError)
    except TimeoutError:
        return False
    return True


def sweep(guard: GuardId, seconds: float, user: User | None = None, looks: int = EMPTY_LOOKS) -> bool:
    """Send SIGKILL to processes that have an ended guard's id in their environment. Return whether none is left.

    A guard leaves no process unless it was killed itself. Then its agent dies by the parent-death signal,
    but tools in sessions of their own do not. None is left when `looks` checks in a row find nothing.
    """
    if guard.boot_id != boot_id():
        return True
    mark = f"{guarding.MARK}={guard.pid}-{guard.start_time}".encode()
    empty = 0
    for _ in range(max(looks, int(seconds / 0.02))):
        with acting_as(user):  # only that user may read the environment of its processes
            left = [one for one in guarding.processes() if not one.dead and mark in _environ(one.pid)]
        empty = 0 if left else empty + 1
        if empty == looks:
            return True
        guarding.send(left, signal.SIGKILL)
        gevent.sleep(0.02)
    return False


def _environ(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
