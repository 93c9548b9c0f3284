"""The guard: a small process between owner and agent that ends the agent's whole tree when the owner dies.

Run as `python -I -S guard.py LIFELINE REPORT TRACE USER DIRECTORY COMMAND…`. It uses the standard library only,
so that it starts in 20 ms.

- `LIFELINE` is the read end of a pipe whose other end only the owner has. End-of-file means that the owner died or
  wants the agent to stop. The guard cannot miss it, unlike a death signal, which follows the spawning thread.
- `REPORT` gets one line and is closed: `agent PID START_TIME` (the agent's pid, the guard's own start time) or
  `error TEXT`.
- `TRACE` gets the guard's stack on SIGUSR1, because the guard's stderr is the agent's.
- `USER` is `UID:GID` if the agent runs as another user than the guard, otherwise `-`. The guard keeps its own user,
  so that the agent can neither signal nor trace it.
- `DIRECTORY` is the agent's working directory. The agent enters it as its own user. The guard may lack the
  permission, so it stays out.
- The agent inherits the guard's stdin, stdout, stderr and environment, plus `SESSIOND_GUARD`. That variable
  identifies the processes of a tree whose guard was killed.

The guard is a child subreaper: a process that double-forks or starts its own session is still its descendant. The
guard exits only when it has no child left, with the agent's status (128 + n after signal n).
"""

import contextlib
import ctypes
import errno
import faulthandler
import os
import select
import signal
import sys
import time
from typing import NamedTuple, NoReturn

MARK = "SESSIOND_GUARD"
"""The environment variable of every process below a guard. Its value is `PID-START_TIME` of the guard."""
GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL."""
KILL_TRIES = 100
"""Attempts to kill the guard's children between two checks of the whole tree. They take a few ms."""
BLIND = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors that do not show whether the process exists."""
LOOKS = 10
"""After this many checks that each find other processes, the tree counts as having strays."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38
_libc = ctypes.CDLL(None, use_errno=True)


class Process(NamedTuple):
    """An entry of the process table."""

    pid: int
    parent: int
    state: str
    start_time: int
    """Clock ticks since boot. With the pid and the boot id it identifies a process uniquely."""

    @property
    def dead(self) -> bool:
        return self.state in "ZX"


def process(pid: int) -> Process | None:
    """Return the process `pid` as /proc shows it, or None if there is none.

    Raises:
        OSError: /proc cannot be read now.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except OSError as error:
        if error.errno in BLIND:
            raise
        return None
    # The name in the second field may contain blanks and brackets: the rest starts after the last bracket.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return Process(pid, int(fields[1]), fields[0].decode(), int(fields[19]))


def processes() -> list[Process]:
    """Return the process table. It is not a snapshot: a process that is forked during the read may be missing."""
    found = (process(int(name)) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208
    return [one for one in found if one is not None]


def descendants(root: int) -> list[Process]:
    """Return the live descendants of `root`."""
    below: dict[int, list[Process]] = {}
    for one in processes():
        below.setdefault(one.parent, []).append(one)
    tree = list(below.get(root, []))
    for one in tree:
        tree.extend(below.get(one.pid, []))
    return [one for one in tree if not one.dead]


def strays(guard: int, agent: int) -> bool:
    """Return whether a process other than the agent runs below its guard: a tool's process, or its orphan.

    One check is not a snapshot: a listed process may have forked and died since. So the result is False only if two
    checks in a row find the same pids and none of them is alive.
    """
    before: set[int] | None = None
    for _ in range(LOOKS):
        try:
            # The agent first: a process that loses its parent moves from the agent to the guard.
            below = {pid for parent in (agent, guard) for pid in _children(parent) if pid != agent}
        except FileNotFoundError:  # the kernel does not list children, or the processes are gone
            return any(one.pid != agent for one in descendants(guard))
        if any(one is not None and not one.dead for one in map(process, below)):
            return True
        if below == before:
            return False
        before = below
    return True


def _children(pid: int) -> list[int]:
    """Return the pids of the children, without reading the whole process table."""
    tasks = f"/proc/{pid}/task"
    found: list[int] = []
    for thread in os.listdir(tasks):  # noqa: PTH208
        with contextlib.suppress(ProcessLookupError), open(f"{tasks}/{thread}/children") as file:
            found.extend(map(int, file.read().split()))
    return found


def send(targets: list[Process], number: int) -> None:
    """Signal processes that were just read from /proc. Skip those that are gone by now."""
    for target in targets:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(target.pid, number)


class Guard:
    """One agent's tree, from its start until nothing of it is left."""

    def __init__(self, lifeline: int, report: int, trace: int, user: tuple[int, int] | None, directory: str) -> None:
        self._lifeline = lifeline
        self._report = report
        self._trace = trace
        self._user = user
        self._directory = directory
        self._agent = 0
        self._status = 0
        self._asked = False

    def run(self, command: list[str]) -> int:
        """Start the agent, wait for its end or the owner's, then end the tree. Return the agent's exit code."""
        for inherited in (self._lifeline, self._report, self._trace):
            os.set_inheritable(inherited, False)
        if os.getsid(0) != os.getpid():
            os.setsid()
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        # No descendant may gain rights that the guard lacks (sudo): the guard could not end it.
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        self._wake = self._watch_signals()
        if not self._start(command):
            return 127
        self._close_streams()
        while not self._asked and self._agent_lives():
            self._wait(None)
        self._end_tree()
        code = os.waitstatus_to_exitcode(self._status)
        return code if code >= 0 else 128 - code

    def _watch_signals(self) -> int:
        readable, writable = os.pipe()
        faulthandler.register(signal.SIGUSR1, file=self._trace)
        os.set_blocking(readable, False)
        os.set_blocking(writable, False)
        signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._ask)
        for number in (signal.SIGINT, signal.SIGQUIT):  # sent by a terminal, not meant for the guard
            signal.signal(number, signal.SIG_IGN)
        return readable

    def _ask(self, *_: object) -> None:
        self._asked = True

    def _start(self, command: list[str]) -> bool:
        failed, failure = os.pipe()
        me = os.getpid()
        own = process(me)
        assert own is not None
        environ = {**os.environ, MARK: f"{me}-{own.start_time}"}
        self._agent = os.fork()
        if self._agent == 0:
            _become(command, environ, me, failure, self._user, self._directory)
        os.close(failure)
        error = os.read(failed, 1000)
        os.close(failed)
        os.write(self._report, b"error " + error + b"\n" if error else b"agent %d %d\n" % (self._agent, own.start_time))
        os.close(self._report)
        return not error

    def _close_streams(self) -> None:
        """Close the guard's copies; otherwise neither side would see the other's end-of-file."""
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os.close(null)

    def _wait(self, seconds: float | None) -> None:
        """Wait for a signal, for the lifeline's end, or for `seconds`."""
        # Not select(): the lifeline keeps its number from the owner, which may exceed 1023.
        poll = select.poll()
        for watched in [self._wake] if self._asked else [self._wake, self._lifeline]:
            poll.register(watched, select.POLLIN)
        ready = {one for one, _ in poll.poll(None if seconds is None else seconds * 1000)}
        if self._wake in ready:
            os.read(self._wake, 4096)
        if self._lifeline in ready and not os.read(self._lifeline, 4096):
            self._asked = True

    def _agent_lives(self) -> bool:
        self._reap()
        return self._agent != 0

    def _reap(self) -> bool:
        """Reap exited children. Return False once no child is left; then there is no descendant either."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._agent:
                self._agent, self._status = 0, status

    def _end_tree(self) -> None:
        self._asked = True
        if not self._reap():
            return
        self._send(signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        while self._reap() and (left := deadline - time.monotonic()) > 0:
            self._wait(left)
        while self._reap():
            self._send(signal.SIGKILL)
            self._kill_children()
            self._wait(0.01)

    def _send(self, number: int) -> None:
        with contextlib.suppress(OSError):  # /proc cannot be read now; the caller tries again
            send(descendants(os.getpid()), number)

    def _kill_children(self) -> None:
        """Kill the guard's children without reading the whole process table.

        A tool that forks and exits again and again is faster than such a read. Its live process soon becomes a child of
        the guard, because its parent exits.
        """
        me = os.getpid()
        for _ in range(KILL_TRIES):
            with contextlib.suppress(FileNotFoundError):  # the kernel does not list children
                for pid in _children(me):  # not reaped yet, so the pid cannot belong to another process
                    os.kill(pid, signal.SIGKILL)
            if not self._reap():
                return


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def _become(
    command: list[str], environ: dict[str, str], guard: int, failure: int, user: tuple[int, int] | None, directory: str
) -> NoReturn:
    """Become the agent, in the child process. On an error, write the reason to `failure`."""
    what = directory
    try:
        if user is not None:
            _change_user(*user)
        os.chdir(directory)
        what = command[0]
        # After the change of user, which clears this setting.
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:  # the guard died before the line above
            os._exit(1)
        for number in (
            signal.SIGCHLD,
            signal.SIGTERM,
            signal.SIGHUP,
            signal.SIGINT,
            signal.SIGQUIT,
            signal.SIGPIPE,
            signal.SIGXFSZ,
        ):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.execvpe(command[0], command, environ)
    except OSError as error:
        os.write(failure, f"{what}: {error.strerror}".encode())
    finally:
        os._exit(127)


def _change_user(uid: int, gid: int) -> None:
    """Change the real, effective and saved ids for good, and drop all other groups and all capabilities.

    Raises:
        OSError: the change failed.
    """
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if os.getresuid() != (uid,) * 3 or os.getresgid() != (gid,) * 3 or os.getgroups():
        raise OSError(errno.EPERM, "cannot change the user")


def main() -> NoReturn:
    lifeline, report, trace = map(int, sys.argv[1:4])
    uid, _, gid = sys.argv[4].partition(":")
    user = None if sys.argv[4] == "-" else (int(uid), int(gid))
    sys.exit(Guard(lifeline, report, trace, user, sys.argv[5]).run(sys.argv[6:]))


if __name__ == "__main__":
    main()
