"""The pipes between owner, guard and agent, and the start of the guard."""

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import gevent
from gevent.os import make_nonblocking, nb_read
from gevent.subprocess import Popen

from sessiond.agent.process import guard as guarding
from sessiond.agent.process.guard_registry import GuardId, boot_id
from sessiond.agent.process.user import User

READ_SIZE = 64 * 1024
"""Bytes of one read. It also limits how long one batch of lines occupies the hub."""
REPORT_SECONDS = 10.0
"""Seconds in which a guard must report its agent. It usually takes 20-50 ms."""


class SpawnError(Exception):
    """The agent could not be started. The text is one line that says why."""


def _pipe(undo: contextlib.ExitStack) -> tuple[int, int]:
    """Create a pipe that the stack closes, in case no file descriptor is free for a later pipe."""
    ends = os.pipe()
    for end in ends:
        undo.callback(os.close, end)
    return ends


class Pipes:
    """The four pipes between owner, guard and agent, and the pipe of the guard's report.

    The public fields are the owner's ends.
    """

    def __init__(self) -> None:
        # No end is inheritable: each is passed on by number to the process that needs it.
        with contextlib.ExitStack() as undo:
            stdin, stdout, stderr, lifeline, report = [_pipe(undo) for _ in range(5)]
            undo.pop_all()
        self._stdin, self.stdin = stdin
        self.stdout, self._stdout = stdout
        self.stderr, self._stderr = stderr
        self._lifeline, self.lifeline = lifeline
        self._report, self._reported = report
        for end in (self.stdin, self.stdout, self.stderr, self._report):
            make_nonblocking(end)

    def start(self, argv: Sequence[str], cwd: Path, env: Mapping[str, str], user: User | None) -> "Popen[bytes]":
        """Start the guard and close its ends here.

        Raises:
            SpawnError: the guard did not start.
        """
        ends = [self._lifeline, self._reported]
        account = "-" if user is None else f"{user.uid}:{user.gid}"
        try:
            ends.append(os.dup(2))
            command = [sys.executable, "-I", "-S", guarding.__file__, *map(str, ends), account, str(cwd), *argv]
            return Popen(
                command, cwd="/", env=dict(env), stdin=self._stdin, stdout=self._stdout, stderr=self._stderr,
                pass_fds=ends, close_fds=True, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise SpawnError(f"cannot start the agent's guard: {error}") from error
        finally:
            for end in (self._stdin, self._stdout, self._stderr, *ends):
                os.close(end)

    def identify(self, popen: "Popen[bytes]") -> GuardId:
        """Wait for the guard's report.

        Raises:
            SpawnError: the agent did not start. The guard is gone.
        """
        report = b""
        with gevent.Timeout(REPORT_SECONDS, False):  # type: ignore[arg-type]
            while data := nb_read(self._report, READ_SIZE):
                report += data
        word, _, rest = report.decode(errors="replace").strip().partition(" ")
        if word == "agent":  # even if both are gone by now: the agent's output is still to be read
            agent, start_time = map(int, rest.split())
            return GuardId(popen.pid, start_time, boot_id(), agent)
        if word != "error":
            with contextlib.suppress(ProcessLookupError):
                popen.kill()
        popen.wait()
        raise SpawnError(f"the agent did not start: {rest or self._last_error()}")

    def _last_error(self) -> str:
        unknown = "its guard gave no reason"
        with contextlib.suppress(BlockingIOError):
            lines = os.read(self.stderr, READ_SIZE).decode(errors="replace").split("\n")
            return " ".join(lines[-2:]).strip() or unknown
        return unknown

    def close_report(self) -> None:
        os.close(self._report)

    def close(self) -> None:
        for end in (self.stdin, self.stdout, self.stderr, self.lifeline):
            os.close(end)
