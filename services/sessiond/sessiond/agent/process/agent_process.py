"""The agent as a process: its guard, its pipes, its exit. This module moves bytes and decides nothing.

It cooperates with gevent, patched or not. Use it from the main thread: gevent reports ended children only
there. Callbacks run in this module's greenlets and must not block, so they put items into an inbox.
"""

import logging
import os
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import gevent
from gevent.event import Event
from gevent.os import nb_read, nb_write
from gevent.subprocess import Popen

from sessiond.agent.process import guard as guarding
from sessiond.agent.process.guard_registry import EMPTY_LOOKS, RETRY_SECONDS, SWEEP_SECONDS, GuardId, guard_alive, sweep
from sessiond.agent.process.pipes import READ_SIZE, Pipes
from sessiond.agent.process.user import User

log = logging.getLogger(__name__)

LINE_LIMIT = 64 * 2**20
"""Longest line in bytes. A longer one ends the agent. Whole answers of a few MB in one line are usual."""
UNWRITTEN_LIMIT = 16 * 2**20
"""Bytes that may wait for the agent to read its stdin."""
STDERR_KEPT = 4096
EOF_SECONDS = 5.0
"""Seconds that a pipe may stay open after the guard's end. Only a process that left the tree can hold it open."""


class InputFull(Exception):
    """The agent does not read its stdin, and `UNWRITTEN_LIMIT` is reached. Nothing was written."""


@dataclass(frozen=True, slots=True)
class StartedGuard:
    """A guard that has reported its agent."""

    popen: "Popen[bytes]"
    guard: GuardId
    pipes: Pipes
    user: User | None


class AgentProcess:
    """A running agent under its guard. Create it with `spawn`."""

    guard: GuardId

    def __init__(
        self,
        started: StartedGuard,
        on_lines: Callable[[list[bytes]], None],
        on_exit: Callable[[int | None, str], None],
    ) -> None:
        pipes = started.pipes
        self.guard = started.guard
        self._user = started.user
        self._popen = started.popen
        self._lifeline: int | None = pipes.lifeline
        self._on_lines = on_lines
        self._on_exit = on_exit
        self._stderr = b""
        self._stop_reason = ""
        self._reading = Event()
        self._reading.set()
        self._input = _Input(pipes.stdin)
        self._output = gevent.spawn(self._read_output, pipes.stdout)
        self._errors = gevent.spawn(self._read_errors, pipes.stderr)
        gevent.spawn(self._await_exit)

    @classmethod
    def spawn(
        cls,
        argv: Sequence[str],
        cwd: Path,
        env: Mapping[str, str],
        on_lines: Callable[[list[bytes]], None],
        on_exit: Callable[[int | None, str], None],
        user: User | None = None,
    ) -> Self:
        """Start the guard and the agent. Return once the guard has reported the agent's pid.

        `on_lines` gets the whole lines of one read, at least one, without their line ends.

        `on_exit` is called once, after the guard and the whole tree are gone and every line was delivered. It gets
        the agent's exit code and the last 4 KiB of its stderr. The code is 128 + n after signal n, and None if the
        guard was killed, because the code is then unknown.

        `user` is the account of the agent; None is the account of this process.

        Raises:
            SpawnError: the agent did not start. Nothing runs, and no callback is called.
        """
        pipes = Pipes()
        try:
            popen = pipes.start(argv, cwd, env, user)
            identity = pipes.identify(popen)
        except BaseException:
            pipes.close()
            raise
        finally:
            pipes.close_report()
        return cls(StartedGuard(popen, identity, pipes, user), on_lines, on_exit)

    def write(self, data: bytes) -> None:
        """Write whole lines after everything that was written before. Never block.

        Bytes that the pipe does not take at once are written as the agent reads; `unwritten` counts them. Data
        written after the agent's end is dropped; `on_exit` reports that end.

        Raises:
            InputFull: too many bytes wait for the agent to read them.
            ValueError: the data does not end with a line feed.
        """
        if not data.endswith(b"\n"):
            raise ValueError("not a whole line")
        self._input.write(data)

    @property
    def unwritten(self) -> int:
        """Bytes that `write` accepted and that are not in the pipe yet."""
        return self._input.unwritten

    @property
    def strays(self) -> bool:
        """Whether any process other than the agent runs in its tree. True if /proc cannot be read now."""
        try:
            return guarding.strays(self.guard.pid, self.guard.agent_pid)
        except OSError as error:  # no file descriptor is free; nothing is granted before the tree is examined
            log.warning("cannot examine the process tree of agent %d: %s; will retry", self.guard.agent_pid, error)
            return True

    def pause(self) -> None:
        """Stop reading. The agent blocks on its stdout once the pipe is full."""
        self._reading.clear()

    def resume(self) -> None:
        """Continue reading."""
        self._reading.set()

    @property
    def paused(self) -> bool:
        """Whether reading is paused."""
        return not self._reading.is_set()

    def stop(self) -> None:
        """Ask the guard to end the tree: SIGTERM, 1 s, SIGKILL. `on_exit` follows. Ends a pause. Idempotent."""
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        self.resume()

    def kill(self) -> None:
        """Send SIGKILL to the guard and to its whole tree, for a guard that does not end the tree when asked."""
        self.stop()
        if guard_alive(self.guard):
            tree = guarding.descendants(self.guard.pid)
            os.kill(self.guard.pid, signal.SIGKILL)
            guarding.send(tree, signal.SIGKILL)

    def _read_output(self, stdout: int) -> None:
        try:
            lines = _Lines()
            while data := nb_read(stdout, READ_SIZE):
                if batch := lines.feed(data):
                    self._on_lines(batch)
                # A read with data ready does not yield, so an agent that writes without a pause would block the hub.
                gevent.sleep(0)
                self._reading.wait()
        except Exception as error:
            self._give_up(f"its output cannot be taken: {error}")
        else:
            # Usually the agent exits right after this. Stop one that does not, because it can report nothing more.
            gevent.spawn_later(EOF_SECONDS, self._give_up, "it closed its stdout")
        finally:
            os.close(stdout)

    def _give_up(self, why: str) -> None:
        """Stop an agent that cannot be used. `on_exit` gets the reason at the end of the stderr text."""
        if self._lifeline is not None:
            log.error("stopping agent %d: %s", self.guard.agent_pid, why)
            self._stop_reason = f"\nsessiond: {why}"
            self.stop()

    def _read_errors(self, stderr: int) -> None:
        try:
            while data := nb_read(stderr, READ_SIZE):
                self._stderr = (self._stderr + data)[-STDERR_KEPT:]
                gevent.sleep(0)
        finally:
            os.close(stderr)

    def _await_exit(self) -> None:
        code = self._popen.wait()
        while not self._swept(EMPTY_LOOKS if code < 0 else 1):
            log.error(
                "processes of the ended guard %d still run, or /proc cannot be read; retrying in %g s",
                self.guard.pid,
                RETRY_SECONDS,
            )
            gevent.sleep(RETRY_SECONDS)
        self.stop()
        readers: list[gevent.Greenlet[..., None]] = [self._output, self._errors]
        gevent.joinall(readers, timeout=EOF_SECONDS)
        gevent.killall(readers)
        self._input.close()
        self._on_exit(code if code >= 0 else None, self._stderr.decode(errors="replace") + self._stop_reason)

    def _swept(self, looks: int) -> bool:
        """Return whether no process of the tree is left. False if no file descriptor is free for the check."""
        try:
            return sweep(self.guard, SWEEP_SECONDS, self._user, looks)
        except OSError:
            return False


class _Input:
    """The agent's stdin. Accepts whole lines at once and writes them as the agent reads."""

    def __init__(self, fd: int) -> None:
        self.unwritten = 0
        self._fd = fd
        self._queue: deque[memoryview] = deque()
        self._filled = Event()
        self._open = True
        self._writer = gevent.spawn(self._write)

    def write(self, data: bytes) -> None:
        if not self._open:
            return
        if self.unwritten + len(data) > UNWRITTEN_LIMIT:
            raise InputFull(f"{self.unwritten} bytes wait for the agent to read them")
        done = 0
        if not self._queue:  # the usual case: write in the caller's own step
            try:
                done = os.write(self._fd, data)
            except BlockingIOError:
                pass
            except BrokenPipeError:
                self._open = False
                return
        if done < len(data):
            self._queue.append(memoryview(data)[done:])
            self.unwritten += len(data) - done
            self._filled.set()

    def _write(self) -> None:
        try:
            while self._filled.wait():
                while self._queue:
                    done = nb_write(self._fd, self._queue[0])
                    self.unwritten -= done
                    rest = self._queue.popleft()[done:]
                    if rest:
                        self._queue.appendleft(rest)
                self._filled.clear()
        except OSError:  # the agent is gone or closed its stdin; its exit is reported
            pass
        finally:
            self._open = False
            self._queue.clear()
            self.unwritten = 0
            os.close(self._fd)

    def close(self) -> None:
        self._open = False
        self._writer.kill()


class _Lines:
    """Splits a stream at line feeds. The pieces of an unfinished line are joined once, when it ends."""

    def __init__(self) -> None:
        self._begun: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that `data` completes, without line feeds.

        Raises:
            ValueError: an unfinished line exceeds `LINE_LIMIT`.
        """
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = b"".join((*self._begun, lines[0]))
            self._begun, self._size = [], 0
        if rest:
            self._begun.append(rest)
            self._size += len(rest)
            if self._size > LINE_LIMIT:
                raise ValueError(f"a line of more than {LINE_LIMIT} bytes")
        return lines
