"""Server processes for tests and the demo: Redis, sessiond, webhook, and stand-ins for the model and GitHub.

Every server listens on loopback. `close` ends it by pid and checks that none of its processes is left.
"""

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlencode

import psutil
import urllib3
from prometheus_client.parser import text_string_to_metric_families

from sessiond.client import Client, connect
from sessiond_ops.embedded_redis import EmbeddedRedis

TESTS = Path(__file__).parents[1]
SERVICES = TESTS.parent / "services"
ROLES = ("admin", "handler", "worker", "viewer")
SCRIPTED = (sys.executable, "-I", "-S", str(TESTS / "support" / "standins" / "scripted_agent.py"))


def eventually(check: Callable[[], Any], seconds: float = 10.0, what: str | Callable[[], str] = "") -> Any:
    """Call `check` until it returns something true, and return that.

    Raises:
        AssertionError: `check` returned nothing true within `seconds`. The text names what was expected (`what`).
    """
    ends = time.monotonic() + seconds
    while True:
        found = check()
        if found:
            return found
        if time.monotonic() > ends:
            raise AssertionError(f"not within {seconds} s: {(what() if callable(what) else what) or check}")
        time.sleep(0.01)


_PORTS: list[int] = []
"""Open files. Each locks one port until this process ends."""


def free_port() -> int:
    """Reserve a port until this process ends, also while its server is down.

    The port is below the kernel's ephemeral range. A locked file reserves it against other test processes.
    """
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    place = Path(tempfile.gettempdir()) / f"sessiond-test-ports-{os.getuid()}"
    place.mkdir(exist_ok=True)
    while True:
        port = random.randrange(first - 12_000, first)
        file = os.open(place / str(port), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            os.close(file)
            continue
        _PORTS.append(file)
        return port


class Redis:
    """A Redis server with its own directory."""

    def __init__(self) -> None:
        # pytest's own directories are too deep: the path of a unix socket may have at most 107 bytes.
        self._directory = tempfile.TemporaryDirectory(prefix="redis-")
        self.server = EmbeddedRedis(Path(self._directory.name))
        self.server.start()
        self.url = self.server.url

    def pause(self) -> None:
        self.server.send(signal.SIGSTOP)

    def resume(self) -> None:
        self.server.send(signal.SIGCONT)

    def restart(self) -> None:
        self.server.stop()
        self.server.start()

    def kill9(self) -> None:
        self.server.kill()

    def start(self) -> None:
        self.server.start()

    def copy(self, to: Path) -> None:
        """Copy the current data while the server is paused."""
        self.pause()
        shutil.copytree(Path(self._directory.name) / "appendonlydir", to)
        self.resume()

    def restore_data(self, copy: Path) -> None:
        """Replace the data with a copy. The server must be stopped."""
        data = Path(self._directory.name) / "appendonlydir"
        shutil.rmtree(data)
        shutil.copytree(copy, data)

    def close(self) -> None:
        self.server.stop()
        self._directory.cleanup()


class StandIn:
    """A process of `standins/` that prints its URL first, and logs what it receives."""

    script: str

    def __init__(self) -> None:
        command = [sys.executable, str(TESTS / "support" / "standins" / self.script)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()

    def _get(self, path: str) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{self.url}{path}") as answer:
            found: list[dict[str, Any]] = json.load(answer)
        return found

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


class Model(StandIn):
    """A Messages API that answers as the prompt directs."""

    script = "model.py"

    def log(self, first: int = 0) -> list[dict[str, Any]]:
        """Return every request from number `first` on, with its messages."""
        return self._get(f"/log?from={first}")


class Github(StandIn):
    """A GitHub with one repository, an issue (1), a pull request (2) and one bot account."""

    script = "github.py"
    TOKEN = "ghp_loopback_token_0001"
    BOT: Mapping[str, Any] = {"id": 9001, "login": "sessiond-bot", "type": "User"}
    REPO = "Octo/Hello"

    def __init__(self) -> None:
        super().__init__()
        self.order("token", token=self.TOKEN, **self.BOT)
        self.thread(1)
        self.thread(2, pull=True)

    def env(self) -> dict[str, str]:
        """Return the settings of a poster that uses the token."""
        return {"GITHUB_API_URL": self.url, "GITHUB_TOKEN": self.TOKEN}

    def thread(self, number: int, repo: str = REPO, **more: Any) -> None:
        self.order("thread", repo=repo, number=number, **more)

    def comment(self, number: int, body: str = "?", kind: str = "issue", **more: Any) -> int:
        """Add a person's comment and return its id. `kind` is issue or review."""
        given = {"repo": self.REPO, "author": {"id": 77, "login": "mona", "type": "User"}, **more}
        made: list[int] = self.order("comment", number=number, body=body, kind=kind, **given)
        return made[0]

    def fault(self, mode: str, match: str = "POST .*comments", **more: Any) -> None:
        self.order("fault", mode=mode, match=match, **more)

    def order(self, what: str, **given: Any) -> Any:
        """Send a command to the stand-in's own API. Returns the JSON answer."""
        request = urllib.request.Request(f"{self.url}/_admin/{what}", json.dumps(given).encode(), method="POST")
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def log(self) -> list[dict[str, Any]]:
        """Return every write in order."""
        return self._get("/log")

    def requests(self) -> list[dict[str, Any]]:
        return self._get("/requests")


class Closable(Protocol):
    def close(self) -> None: ...


Server = TypeVar("Server", bound=Closable)


@contextlib.contextmanager
def close_all(start: Callable[..., Server]) -> Iterator[Callable[..., Server]]:
    """Yield a function that calls `start`. At the end, close everything that it returned, the newest first."""
    with contextlib.ExitStack() as stack:

        def factory(*args: Any, **kwargs: Any) -> Server:
            server = start(*args, **kwargs)
            stack.callback(server.close)
            return server

        yield factory


def tree(pid: int) -> list[psutil.Process]:
    """Return a process and its descendants as they are now."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def alive(process: psutil.Process) -> bool:
    """Whether the process runs: it has neither ended nor become a zombie."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def kill_left(processes: Iterable[psutil.Process]) -> None:
    """Send SIGKILL to the processes that still run."""
    for process in processes:
        if alive(process):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def answers(url: str) -> bool:
    """Whether a sessiond is ready at this URL."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


class Sessiond:
    """sessiond under gunicorn, with its own state directory."""

    def __init__(
        self, redis_url: str, state: Path, env: Mapping[str, str] | None = None, under: Sequence[str] = ()
    ) -> None:
        """`under` is a command that runs the service, such as `strace -D`."""
        self.state, self._under = state, under
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.keys = {role: f"{role}-key" for role in ROLES}
        self._env = dict(env or {})
        self._redis_url = redis_url
        self._seen: dict[int, psutil.Process] = {}
        self._paused: list[psutil.Process] = []
        state.mkdir(parents=True, exist_ok=True)
        lines = [f"{r} {r} {hashlib.sha256(k.encode()).hexdigest()}\n" for r, k in self.keys.items()]
        (state / "keys").write_text("".join(lines))
        self.start()

    def start(self, wait: bool = True) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SESSIOND_", "ANTHROPIC_", "CLAUDE"))}
        env = {
            **kept, "REDIS_URL": self._redis_url, "SESSIOND_STATE_DIR": str(self.state),
            "SESSIOND_PORT": str(self.port),
            **self._env,
        }  # fmt: skip
        self.log_file = (self.state / "sessiond.log").open("ab")
        command = [*self._under, sys.executable, "-m", "sessiond.main"]
        self._process = subprocess.Popen(command, env=env, stdout=self.log_file, stderr=self.log_file)
        self.pid = self._process.pid
        if wait:
            try:
                eventually(self.ready, 60, lambda: f"sessiond ready: {self.log_text()}")
            except AssertionError:
                self.terminate()  # no caller has a reference to close it
                raise

    def ready(self) -> bool:
        if self._process.poll() is not None:
            raise AssertionError(f"sessiond ended: {self.log_text()}")
        return answers(self.url)

    def log_bytes(self) -> bytes:
        return (self.state / "sessiond.log").read_bytes()

    def log_text(self) -> str:
        return self.log_bytes().decode(errors="replace")[-3000:]

    def client(self, role: str = "admin", holder: str | None = None) -> Client:
        return connect(self.url, self.keys[role], holder)

    def ledger(self, session: str) -> list[dict[str, Any]]:
        """Return the session's whole ledger."""
        client, entries = self.client(), list[dict[str, Any]]()
        while page := client.ledger(session, entries[-1]["id"] if entries else None):
            entries += page
        return entries

    def remember(self) -> None:
        """Record the processes that run now, so that `left` can find them later."""
        self._seen |= {p.pid: p for p in tree(self.pid)}

    def left(self) -> list[psutil.Process]:
        """Return the recorded processes that still run."""
        return [p for p in self._seen.values() if alive(p)]

    def kill9(self) -> None:
        """Kill gunicorn's master and its worker with SIGKILL."""
        self.remember()
        doomed = [self._process.pid, *(c.pid for c in psutil.Process(self.pid).children())]
        for pid in doomed:
            os.kill(pid, signal.SIGKILL)
        self.reap()

    def reap(self) -> None:
        """Wait for the killed master, and close the log."""
        self._process.wait()
        self.log_file.close()

    def pause(self) -> None:
        """Suspend gunicorn's master and its worker. The guard and the agent continue."""
        self.remember()
        master = psutil.Process(self.pid)
        self._paused = [master, *master.children()]
        for one in self._paused:
            one.suspend()

    def resume(self) -> None:
        while self._paused:
            self._paused.pop().resume()

    def terminate(self) -> None:
        self.resume()
        if self._process.poll() is None:
            self.remember()
            self._process.terminate()
            self._process.wait(25)
        self.log_file.close()

    def close(self) -> None:
        self.terminate()
        eventually(lambda: not self.left(), 5, f"no process left: {self.left()}")


class FaultPoints:
    """Fault points of a service. A process that reaches a held point waits there until `release`.

    `hooks` is their directory. The service is started with it in HOOKS_DIR.
    """

    hooks: Path

    def log_text(self) -> str:
        raise NotImplementedError

    def hold(self, point: str) -> None:
        (self.hooks / f"{point}.hold").touch()

    def release(self, point: str) -> None:
        (self.hooks / f"{point}.hold").unlink(missing_ok=True)
        (self.hooks / f"{point}.reached").unlink(missing_ok=True)

    def wait_until_reached(self, point: str, seconds: float = 20) -> int:
        """Wait until a process has reached this fault point. Returns its pid."""
        place = self.hooks / f"{point}.reached"
        return int(
            eventually(
                lambda: place.exists() and place.read_text(), seconds, lambda: f"{point} reached: {self.log_text()}"
            )
        )


class Webhook(FaultPoints):
    """`python -m sessiond_webhook`: gunicorn's master and two worker processes by default."""

    SECRET = "a secret of this test"

    def __init__(self, redis_url: str, place: Path, env: Mapping[str, str] | None = None) -> None:
        place.mkdir(parents=True, exist_ok=True)
        self.place, self.port = place, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.pool = urllib3.PoolManager(retries=False, timeout=30, maxsize=64)
        self.hooks = place / "hooks"
        self.hooks.mkdir(exist_ok=True)
        self.env = {
            "REDIS_URL": redis_url, "SESSIOND_URL": "http://127.0.0.1:1", "WEBHOOK_SECRET": self.SECRET,
            "WEBHOOK_PORT": str(self.port), "WEBHOOK_PROCESSES": "2", "BOT_LOGIN": "helper[bot]", "BOT_ID": "4711",
            "SWEEP_SECONDS": "3600", "HOOKS_DIR": str(self.hooks), **(env or {}),
        }  # fmt: skip
        self._seen: dict[int, psutil.Process] = {}
        self.start()

    def start(self) -> None:
        names = ("SESSIOND_", "WEBHOOK_", "BOT_", "TRIGGER", "ALLOWED_", "PROMETHEUS_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(names)}
        env = {**kept, **self.env}
        with (self.place / "webhook.log").open("ab") as log:
            command = [sys.executable, "-m", "sessiond_webhook"]
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        eventually(self.alive, 20, "webhook alive")

    def alive(self) -> bool:
        """Whether the webhook answers and every worker process has logged its start.

        One request reaches only one of the processes.
        """
        if self.process.poll() is not None:
            raise AssertionError(f"webhook ended: {self.log_text()}")
        try:
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=2) as answer:
                ready = [p for p in self.workers() if re.search(rf"pid\W+{p.pid}\b", self.log_text(0))]
                return bool(answer.status == 200 and len(ready) == int(self.env["WEBHOOK_PROCESSES"]))
        except OSError:
            return False

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def log_text(self, last: int = 6000) -> str:
        return (self.place / "webhook.log").read_text(errors="replace")[-last:]

    def post(self, event: str, payload: Any, delivery: str | None = None, **more: Any) -> urllib3.BaseHTTPResponse:
        """Send a signed delivery.

        `more` may set `secret`, `form` (a form body), `body` (bytes that replace the payload) and `headers` (a value
        of None removes one).
        """
        body = more.get("body", json.dumps(payload).encode())
        kind = "application/json"
        if more.get("form"):
            body, kind = urlencode({"payload": body.decode()}).encode(), "application/x-www-form-urlencoded"
        signed = "sha256=" + hmac.new(more.get("secret", self.SECRET).encode(), body, hashlib.sha256).hexdigest()
        headers = {
            "Content-Type": kind, "X-GitHub-Event": event, "X-GitHub-Delivery": delivery or uuid.uuid4().hex,
            "X-Hub-Signature-256": signed, **more.get("headers", {}),
        }  # fmt: skip
        sent = {name: value for name, value in headers.items() if value is not None}
        return self.pool.request("POST", f"{self.url}/github", body=body, headers=sent)

    def counted(self) -> dict[tuple[str, str], int]:
        """Return webhook_deliveries_total of all processes, by (event, outcome)."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        return {
            (one.labels["event"], one.labels["outcome"]): int(one.value)
            for family in families for one in family.samples if one.name == "webhook_deliveries_total"
        }  # fmt: skip

    def terminate(self) -> int:
        self._seen |= {p.pid: p for p in tree(self.process.pid)}
        self.process.terminate()
        return self.process.wait(20)

    def close(self) -> None:
        self.pool.clear()
        if self.process.poll() is None:
            self.terminate()

        def left() -> list[psutil.Process]:
            return [p for p in self._seen.values() if alive(p)]

        eventually(lambda: not left(), 5, "no process of the webhook left")


class Caller:
    """A process of `standins/caller.py`. It uses the client as `do` orders."""

    def __init__(self, service: Sessiond, role: str = "admin") -> None:
        command = [sys.executable, str(TESTS / "support" / "standins" / "caller.py"), service.url, service.keys[role]]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.wait_for("ready")

    def do(self, **order: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def wait_for(self, event: str) -> dict[str, Any]:
        """Wait for the next message of this kind.

        Raises:
            AssertionError: The caller reports an error or ends.
        """
        assert self.process.stdout is not None
        for line in self.process.stdout:
            found: dict[str, Any] = json.loads(line)
            if found["event"] == event:
                return found
            if found["event"] == "error":
                raise AssertionError(found)
        raise AssertionError(f"the caller ended, no {event}")

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill9(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill9()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def scripted_env(*faults: str, **times: float) -> dict[str, str]:
    """Return settings for a sessiond with the scripted agent. `times` are seconds, by their names in `Times`."""
    env = {"SESSIOND_AGENT_COMMAND": shlex.join([*SCRIPTED, *(f"--fault={f}" for f in faults)])}
    return env | {f"SESSIOND_{name.upper()}": str(seconds) for name, seconds in times.items()}


def claude_env(model: Model, **more: str) -> dict[str, str]:
    """Return settings for a sessiond with the real claude binary and the model's stand-in."""
    return {"ANTHROPIC_BASE_URL": model.url, "ANTHROPIC_API_KEY": "loopback", **more}
