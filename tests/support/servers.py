"""Real servers for tests and the demo: Redis, sessiond, the loopback model. Each on loopback, each ended by pid."""

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
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
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
    """The first true answer of `check`, asked again and again for at most `seconds`."""
    ends = time.monotonic() + seconds
    while True:
        found = check()
        if found:
            return found
        if time.monotonic() > ends:
            raise AssertionError(f"not within {seconds} s: {(what() if callable(what) else what) or check}")
        time.sleep(0.01)


_PORTS: list[int] = []
"""Open files: each locks a port for as long as this process lives."""


def free_port() -> int:
    """A port of our own until this process ends, also while the server on it is down.

    Below the range from which the kernel takes ports for anybody, and locked against other test processes.
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
    """A real server in a directory of its own."""

    def __init__(self) -> None:
        # Not below pytest's own directories: the path of a unix socket may have 107 bytes.
        self._directory = tempfile.TemporaryDirectory(prefix="redis-")
        self.server = EmbeddedRedis(Path(self._directory.name))
        self.server.start()
        self.url = self.server.url

    def pause(self) -> None:
        self.server.send(signal.SIGSTOP)

    def go_on(self) -> None:
        self.server.send(signal.SIGCONT)

    def restart(self) -> None:
        self.server.stop()
        self.server.start()

    def kill9(self) -> None:
        self.server.kill()

    def start(self) -> None:
        self.server.start()

    def copy(self, to: Path) -> None:
        """Its data as they are now, taken while it stands still."""
        self.pause()
        shutil.copytree(Path(self._directory.name) / "appendonlydir", to)
        self.go_on()

    def put_back(self, copy: Path) -> None:
        """Into a server that is down: a copy's data instead of its own."""
        data = Path(self._directory.name) / "appendonlydir"
        shutil.rmtree(data)
        shutil.copytree(copy, data)

    def close(self) -> None:
        self.server.stop()
        self._directory.cleanup()


class Model:
    """The loopback Messages API as a process."""

    def __init__(self) -> None:
        command = [sys.executable, str(TESTS / "support" / "standins" / "model.py")]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()

    def log(self, first: int = 0) -> list[dict[str, Any]]:
        """Every request from number `first` on, with its messages."""
        with urllib.request.urlopen(f"{self.url}/log?from={first}") as answer:
            found: list[dict[str, Any]] = json.load(answer)
        return found

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


class Github:
    """The loopback GitHub as a process: one repository with an issue (1) and a pull request (2), one bot account."""

    TOKEN = "ghp_loopback_token_0001"
    BOT: Mapping[str, Any] = {"id": 9001, "login": "sessiond-bot", "type": "User"}
    REPO = "Octo/Hello"

    def __init__(self) -> None:
        command = [sys.executable, str(TESTS / "support" / "standins" / "github.py")]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        self.order("token", token=self.TOKEN, **self.BOT)
        self.thread(1)
        self.thread(2, pull=True)

    def env(self) -> dict[str, str]:
        """Settings of a poster that logs in with the token."""
        return {"GITHUB_API_URL": self.url, "GITHUB_TOKEN": self.TOKEN}

    def thread(self, number: int, repo: str = REPO, **more: Any) -> None:
        self.order("thread", repo=repo, number=number, **more)

    def comment(self, number: int, body: str = "?", kind: str = "issue", **more: Any) -> int:
        """Somebody's comment; its id. `kind` is issue or review."""
        given = {"repo": self.REPO, "author": {"id": 77, "login": "mona", "type": "User"}, **more}
        made: list[int] = self.order("comment", number=number, body=body, kind=kind, **given)
        return made[0]

    def fault(self, mode: str, match: str = "POST .*comments", **more: Any) -> None:
        self.order("fault", mode=mode, match=match, **more)

    def order(self, what: str, **given: Any) -> Any:
        request = urllib.request.Request(f"{self.url}/_admin/{what}", json.dumps(given).encode(), method="POST")
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def log(self) -> list[dict[str, Any]]:
        """Every write that was done, in order."""
        return self._get("/log")

    def requests(self) -> list[dict[str, Any]]:
        return self._get("/requests")

    def _get(self, path: str) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{self.url}{path}") as answer:
            found: list[dict[str, Any]] = json.load(answer)
        return found

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def tree(pid: int) -> list[psutil.Process]:
    """A process and all below it, as /proc has them now."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def alive(process: psutil.Process) -> bool:
    """Whether it still runs: neither gone (also between two looks at /proc) nor a zombie."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def kill_left(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL to those that still run; one may end by itself between the look and the signal."""
    for process in processes:
        if alive(process):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def answers(url: str) -> bool:
    """Whether a sessiond is ready there."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


class Sessiond:
    """A real sessiond process (gunicorn and all) with a state directory of its own."""

    def __init__(
        self, redis_url: str, state: Path, env: Mapping[str, str] | None = None, under: Sequence[str] = ()
    ) -> None:
        """`under`: what becomes the service, or starts it, when that is put behind it (strace -D, …)."""
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
                self.terminate()  # nobody else has it yet
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

    def remember(self) -> None:
        """Notes the tree as it is, so that what is left of it later can be found."""
        self._seen |= {p.pid: p for p in tree(self.pid)}

    def left(self) -> list[psutil.Process]:
        """What still runs of all that was remembered."""
        return [p for p in self._seen.values() if alive(p)]

    def kill9(self) -> None:
        """kill -9 of the service: its worker and its master, as one."""
        self.remember()
        doomed = [self._process.pid, *(c.pid for c in psutil.Process(self.pid).children())]
        for pid in doomed:
            os.kill(pid, signal.SIGKILL)
        self.reap()

    def reap(self) -> None:
        """After its master was killed."""
        self._process.wait()
        self.log_file.close()

    def pause(self) -> None:
        """SIGSTOP to the service, its master and its worker; guard and agent go on."""
        self.remember()
        master = psutil.Process(self.pid)
        self._paused = [master, *master.children()]
        for one in self._paused:
            one.suspend()

    def go_on(self) -> None:
        while self._paused:
            self._paused.pop().resume()

    def terminate(self) -> None:
        self.go_on()
        if self._process.poll() is None:
            self.remember()
            self._process.terminate()
            self._process.wait(25)
        self.log_file.close()

    def close(self) -> None:
        self.terminate()
        eventually(lambda: not self.left(), 5, f"no process left: {self.left()}")


class Webhook:
    """A real `python -m sessiond_webhook`: gunicorn's master and, by default, two processes."""

    SECRET = "a secret of this test"

    def __init__(self, redis_url: str, place: Path, env: Mapping[str, str] | None = None) -> None:
        place.mkdir(parents=True, exist_ok=True)
        self.place, self.port = place, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.pool = urllib3.PoolManager(retries=False, timeout=30, maxsize=64)
        (place / "hooks").mkdir(exist_ok=True)
        self.env = {
            "REDIS_URL": redis_url, "SESSIOND_URL": "http://127.0.0.1:1", "WEBHOOK_SECRET": self.SECRET,
            "WEBHOOK_PORT": str(self.port), "WEBHOOK_PROCESSES": "2", "BOT_LOGIN": "helper[bot]", "BOT_ID": "4711",
            "SWEEP_SECONDS": "3600", "HOOKS_DIR": str(place / "hooks"), **(env or {}),
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
        """All of its processes answer; a scrape only ever reaches one of them."""
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
        """A delivery, signed. `more`: secret, form, body (bytes instead of the payload), headers (None leaves out)."""
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
        """webhook_deliveries_total by (event, outcome), of all processes."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        return {
            (one.labels["event"], one.labels["outcome"]): int(one.value)
            for family in families for one in family.samples if one.name == "webhook_deliveries_total"
        }  # fmt: skip

    def hold(self, point: str) -> None:
        (self.place / "hooks" / f"{point}.hold").touch()

    def let_go(self, point: str) -> None:
        (self.place / "hooks" / f"{point}.hold").unlink(missing_ok=True)
        (self.place / "hooks" / f"{point}.reached").unlink(missing_ok=True)

    def reached(self, point: str) -> int:
        """Waits until a process stands at this point; its pid."""
        place = self.place / "hooks" / f"{point}.reached"
        return int(eventually(lambda: place.exists() and place.read_text(), 10, f"{point}: {self.log_text()}"))

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
    """A process of `standins/caller.py`."""

    def __init__(self, service: Sessiond, role: str = "admin") -> None:
        command = [sys.executable, str(TESTS / "support" / "standins" / "caller.py"), service.url, service.keys[role]]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.hear("ready")

    def do(self, **order: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def hear(self, event: str) -> dict[str, Any]:
        """The next message of this kind; the caller's own errors are the test's."""
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

    def go_on(self) -> None:
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
    """Settings for a sessiond with the scripted agent and these times (seconds, by their names in Times)."""
    env = {"SESSIOND_AGENT_COMMAND": shlex.join([*SCRIPTED, *(f"--fault={f}" for f in faults)])}
    return env | {f"SESSIOND_{name.upper()}": str(seconds) for name, seconds in times.items()}


def claude_env(model: Model, **more: str) -> dict[str, str]:
    """Settings for a sessiond with the real claude and the loopback model."""
    return {"ANTHROPIC_BASE_URL": model.url, "ANTHROPIC_API_KEY": "loopback", **more}
