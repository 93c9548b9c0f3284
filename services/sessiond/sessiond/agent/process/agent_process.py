"""The agent as a process: its guard, its pipes, its end. It moves bytes and decides nothing.

Cooperative under gevent, patched or not; to be used from the main thread, because gevent hears of ended children
only there. Callbacks run in this module's greenlets and must not block: hand over to an inbox.
"""

import logging
import os
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import gevent
from gevent.event import Event
from gevent.os import nb_read, nb_write
from gevent.subprocess import Popen

from sessiond.agent.process import guard as guarding
from sessiond.agent.process.guard_registry import AGAIN, EMPTY_LOOKS, SWEEP_SECONDS, GuardId, guard_alive, sweep
from sessiond.agent.process.pipes import READ_SIZE, Pipes
from sessiond.agent.process.user import User

log = logging.getLogger(__name__)

LINE_LIMIT = 64 * 2**20
"""A line that is longer ends the agent: whole answers of some MB are usual, this is none."""
UNWRITTEN_LIMIT = 16 * 2**20
STDERR_KEPT = 4096
EOF_SECONDS = 5.0
"""How long after the guard's end a pipe may stay open; only what left the tree can hold it."""


class InputFull(Exception):
    """The agent has not read its stdin for so long that `UNWRITTEN_LIMIT` is reached. Nothing was written."""


class AgentProcess:
    """A running agent under its guard. Made by `spawn`."""

    guard: GuardId

    def __init__(
        self,
        popen: "Popen[bytes]",
        guard: GuardId,
        pipes: "Pipes",
        on_lines: Callable[[list[bytes]], None],
        on_exit: Callable[[int | None, str], None],
        user: User | None = None,
    ) -> None:
        self.guard = guard
        self._user = user
        self._popen = popen
        self._lifeline: int | None = pipes.lifeline
        self._on_lines = on_lines
        self._on_exit = on_exit
        self._stderr = b""
        self._last_words = ""
        self._flowing = Event()
        self._flowing.set()
        self._input = _Input(pipes.stdin)
        self._output = gevent.spawn(self._read_output, pipes.stdout)
        self._errors = gevent.spawn(self._read_errors, pipes.stderr)
        gevent.spawn(self._see_to_the_end)

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
        """Starts guard and agent; returns once the guard has reported the agent's pid.

        `on_lines` gets what one read brought, whole lines without their line ends, at least one. `on_exit` is called
        once, when the guard and with it the whole tree is gone and every line was handed over: with the agent's exit
        code (128 + n after signal n; None if the guard was killed, so that nobody knows) and the last 4 KiB of stderr.
        `user` is whom the agent runs as, None for our own. Raises SpawnError; then nothing runs and no callback is
        called.
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
        return cls(popen, identity, pipes, on_lines, on_exit, user)

    def write(self, data: bytes) -> None:
        """Writes whole lines, behind all that was written before; never blocks.

        What the pipe does not take at once follows as the agent reads (`unwritten`). After the agent's end it is
        dropped: `on_exit` tells. Raises InputFull, and ValueError for what does not end its line.
        """
        if not data.endswith(b"\n"):
            raise ValueError("not a whole line")
        self._input.write(data)

    @property
    def unwritten(self) -> int:
        """Bytes accepted by `write` that are not in the pipe yet."""
        return self._input.unwritten

    @property
    def strays(self) -> bool:
        """Whether anything but the agent itself lives in its tree."""
        try:
            return guarding.strays(self.guard.pid, self.guard.agent_pid)
        except OSError as error:  # no descriptor to be had: nobody is granted before it was looked
            log.warning("agent %d: its tree cannot be looked at: %s", self.guard.agent_pid, error)
            return True

    def pause(self) -> None:
        """Stops reading: the agent will block on its stdout once the pipe is full."""
        self._flowing.clear()

    def resume(self) -> None:
        """Goes on reading."""
        self._flowing.set()

    def stop(self) -> None:
        """Asks the guard to end the tree: SIGTERM, 1 s, SIGKILL. `on_exit` follows. Ends a pause. Idempotent."""
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        self.resume()

    def kill(self) -> None:
        """Last resort, for a guard that does not do as asked: SIGKILL to it and all below it."""
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
                # A read that need not wait does not yield; whoever floods would have the hub for himself.
                gevent.sleep(0)
                self._flowing.wait()
        except Exception as error:
            self._give_up(f"its output cannot be taken: {error}")
        else:
            # Usual just before its end; one that lives on could never be heard again.
            gevent.spawn_later(EOF_SECONDS, self._give_up, "it closed its stdout")
        finally:
            os.close(stdout)

    def _give_up(self, why: str) -> None:
        """Ends an agent that lives on and is of no use; `on_exit` gives the reason as its last words."""
        if self._lifeline is not None:
            log.error("agent %d: %s; it is ended", self.guard.agent_pid, why)
            self._last_words = f"\nsessiond: {why}"
            self.stop()

    def _read_errors(self, stderr: int) -> None:
        try:
            while data := nb_read(stderr, READ_SIZE):
                self._stderr = (self._stderr + data)[-STDERR_KEPT:]
                gevent.sleep(0)
        finally:
            os.close(stderr)

    def _see_to_the_end(self) -> None:
        code = self._popen.wait()
        while not self._swept(EMPTY_LOOKS if code < 0 else 1):
            log.error("guard %d: what it left is not gone, or cannot be seen", self.guard.pid)
            gevent.sleep(AGAIN)
        self.stop()
        readers: list[gevent.Greenlet[..., None]] = [self._output, self._errors]
        gevent.joinall(readers, timeout=EOF_SECONDS)
        gevent.killall(readers)
        self._input.close()
        self._on_exit(code if code >= 0 else None, self._stderr.decode(errors="replace") + self._last_words)

    def _swept(self, looks: int) -> bool:
        """Whether nothing of it is left. Who cannot see (no descriptor is to be had) must look again."""
        try:
            return sweep(self.guard, SWEEP_SECONDS, self._user, looks)
        except OSError:
            return False


class _Input:
    """The agent's stdin: takes whole lines at once, writes them as the agent reads."""

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
        if not self._queue:  # usual: into the pipe in the caller's own step
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
        except OSError:  # the agent is gone, or closed its stdin: its exit will tell
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
    """Splits a stream at line feeds; the bytes of an unfinished line wait, unjoined, for their end."""

    def __init__(self) -> None:
        self._begun: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes, without line feeds. Raises ValueError beyond `LINE_LIMIT`."""
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
