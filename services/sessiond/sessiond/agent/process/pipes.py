"""The pipes between owner, guard and agent, and the guard's start on them."""

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
"""Bytes a read, so also what one batch of lines can hold the hub for."""
REPORT_SECONDS = 10.0
"""How long a guard may take to report its agent (20-50 ms are usual)."""


class SpawnError(Exception):
    """The agent could not be started; the text is one line that says why."""


def _pipe(undo: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe that is closed with the stack: the third of five may be one descriptor too many."""
    ends = os.pipe()
    for end in ends:
        undo.callback(os.close, end)
    return ends


class Pipes:
    """The four pipes between owner, guard and agent, and the one for the guard's report. Owner's ends by name."""

    def __init__(self) -> None:
        # Not inheritable, all ten: who is to have an end gets it by name, and nobody else can.
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
        """Starts the guard and closes the ends that are its."""
        ends = [self._lifeline, self._reported]
        whom = "-" if user is None else f"{user.uid}:{user.gid}"
        try:
            ends.append(os.dup(2))
            command = [sys.executable, "-I", "-S", guarding.__file__, *map(str, ends), whom, str(cwd), *argv]
            return Popen(
                command, cwd="/", env=dict(env), stdin=self._stdin, stdout=self._stdout, stderr=self._stderr,
                pass_fds=ends, close_fds=True, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise SpawnError(f"no guard for the agent: {error}") from error
        finally:
            for end in (self._stdin, self._stdout, self._stderr, *ends):
                os.close(end)

    def identify(self, popen: "Popen[bytes]") -> GuardId:
        """Waits for the guard's report. Raises SpawnError, after the guard is gone."""
        report = b""
        with gevent.Timeout(REPORT_SECONDS, False):  # type: ignore[arg-type]
            while data := nb_read(self._report, READ_SIZE):
                report += data
        word, _, rest = report.decode(errors="replace").strip().partition(" ")
        if word == "agent":  # and if both are gone by now, all the same: what the agent said is still to be read
            agent, start_time = map(int, rest.split())
            return GuardId(popen.pid, start_time, boot_id(), agent)
        if word != "error":
            with contextlib.suppress(ProcessLookupError):
                popen.kill()
        popen.wait()
        raise SpawnError(f"the agent did not start: {rest or self._last_words()}")

    def _last_words(self) -> str:
        with contextlib.suppress(BlockingIOError):
            lines = os.read(self.stderr, READ_SIZE).decode(errors="replace").split("\n")
            return " ".join(lines[-2:]).strip() or "its guard said nothing"
        return "its guard said nothing"

    def close_report(self) -> None:
        os.close(self._report)

    def close(self) -> None:
        for end in (self.stdin, self.stdout, self.stderr, self.lifeline):
            os.close(end)
