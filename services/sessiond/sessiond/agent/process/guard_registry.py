"""Guards by name: this owner's, and a predecessor's that must be gone before anybody starts an agent.

A predecessor that died took its guard along. One that only stands still did not: whoever owns the session now ends it.
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
AGAIN = 0.5
"""Seconds between two tries to end what is not gone."""
EMPTY_LOOKS = 2
"""In a row: the process table is read entry by entry, and what forks and exits meanwhile may be in none."""


@dataclass(frozen=True, slots=True)
class GuardId:
    """Names a guard for ever, also over a restart of the machine."""

    pid: int
    start_time: int
    """Clock ticks since boot, field 22 of /proc/PID/stat."""
    boot_id: str
    agent_pid: int


class GuardNote:
    """The living guard's name in a file of this machine: Redis may come back older than it.

    Written before the first prompt, removed once the guard is gone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, guard: GuardId) -> None:
        """Replaces what stands there. Raises OSError."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_private(self._path, json.dumps(asdict(guard)))

    def read(self) -> GuardId | None:
        """None if there is none, or none that can be read: a machine that lost its files lost its processes."""
        try:
            return GuardId(**json.loads(self._path.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def remove(self, guard: GuardId) -> None:
        """Unless it names another one by now."""
        if self.read() == guard:
            self._path.unlink(missing_ok=True)


def boot_id() -> str:
    """The kernel's name for this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def guard_alive(guard: GuardId) -> bool:
    """Whether this guard still runs here. False also for another machine's: ask whether the record is of this one."""
    found = guarding.process(guard.pid)
    alive = found is not None and not found.dead and found.start_time == guard.start_time
    return alive and guard.boot_id == boot_id()


def end_guard(guard: GuardId, seconds: float, user: User | None = None) -> bool:
    """Ends this guard (anybody's, not only a child) and all that it guarded: SIGTERM, after `seconds` SIGKILL.

    Returns whether nothing is left; False means that it may not be signalled, or cannot run (a frozen container).
    """
    if not _ended(guard, seconds):
        return False
    return sweep(guard, SWEEP_SECONDS, user)


def _ended(guard: GuardId, seconds: float) -> bool:
    try:
        descriptor = os.pidfd_open(guard.pid)
    except OSError:  # gone by now, or there is no descriptor to be had
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
    """SIGKILL to what carries the mark of a guard that is gone, until nothing does. Returns whether nothing is left.

    A guard leaves nothing behind unless it was killed itself; then its agent dies by a death signal, but not the
    tools in sessions of their own. Nothing is left when so many `looks` in a row found nothing.
    """
    if guard.boot_id != boot_id():
        return True
    mark = f"{guarding.MARK}={guard.pid}-{guard.start_time}".encode()
    empty = 0
    for _ in range(max(looks, int(seconds / 0.02))):
        with acting_as(user):  # another user's environment is not shown to us, its own is
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
