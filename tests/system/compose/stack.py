"""One compose project, from its own clone, with stand-ins for the model and GitHub in containers."""

import hashlib
import hmac
import json
import os
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sessiond.verify import verify
from support.ledger_checks import Entries, check_grant_order
from support.webhook import payloads

TESTS = Path(__file__).resolve().parents[2]
ROOT = TESTS.parent
PROJECT = f"sessiond-test-{os.getpid()}"
SESSION, REPO = "codertocat/hello-world", "Codertocat/Hello-World"
READ_LEDGER = """
import json, os, sys
from sessiond_common.env import load
from sessiond.client import connect
client, after = connect(key=load(lambda env: env.secret("SESSIOND_KEY", "key"), os.environ)), None
while more := client.ledger(sys.argv[1], after):
    print(json.dumps(more))
    after = more[-1]["id"]
"""


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def eventually(check: Callable[[], Any], seconds: float, what: str) -> Any:
    ends = time.monotonic() + seconds
    while not (found := check()):
        if time.monotonic() > ends:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.5)
    return found


class Stack:
    """The compose project. `place` is its clone, `origin` the repository that the clone pulls from."""

    def __init__(self, place: Path) -> None:
        self.origin, self.place = place / "origin", place / "clone"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(self.origin)], check=True)
        subprocess.run(["git", "checkout", "-q", "-B", "main"], cwd=self.origin, check=True)
        subprocess.run(["git", "clone", "-q", str(self.origin), str(self.place)], check=True)
        standins = place / "standins"
        shutil.copytree(TESTS / "support" / "standins", standins)
        for name in ("Dockerfile", "standin_server.py"):
            shutil.copy(TESTS / "system" / "compose" / name, standins / name)
        kept = {
            name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_HOST", "DOCKER_CONTEXT") if name in os.environ
        }
        self.env = {
            **kept, "STANDINS": str(standins), "PROXY_PORT": "18080", "GRAFANA_PORT": "13000",
            "COMPOSE_PROJECT_NAME": PROJECT, "COMPOSE_FILE": "docker-compose.yml:tests/system/compose/compose.test.yml",
        }  # fmt: skip
        self.secret = ""
        self.statuses: list[int] = []

    # ---- commands ----------------------------------------------------------------------------

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command in the clone. Returns what it prints.

        Raises:
            AssertionError: it failed, and `check` is set.
        """
        done = subprocess.run(command, cwd=self.place, env=self.env, capture_output=True, text=True)
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-3000:]}")
        return done.stdout

    def compose(self, *words: str, check: bool = True) -> str:
        return self.run("docker", "compose", *words, check=check)

    def up(self, replicas: int = 3, *, build: bool = False) -> None:
        more = ["--build"] if build else []
        scale = ["--scale", f"webhook={replicas}", "--scale", f"handler={replicas}"]
        self.compose("up", "-d", "--wait", "--wait-timeout", "300", *more, *scale)

    def python(self, service: str, source: str, *words: str) -> str:
        """Run a Python script in the service's container. Returns what it prints."""
        return self.compose("exec", "-T", service, "python", "-c", source, *words)

    def sessionctl(self, *words: str) -> str:
        return self.compose("run", "--rm", "-T", "sessionctl", *words)

    def kill_one(self, service: str) -> None:
        """Kill one replica by pid, like a crash. After `docker kill` the engine would not restart it."""
        name = self.compose("ps", "-q", service).split()[0]
        os.kill(int(self.run("docker", "inspect", "-f", "{{.State.Pid}}", name)), 9)
        say(f"kill -9 of one {service}")

    # ---- GitHub ------------------------------------------------------------------------------

    def ask(self, service: str, path: str, given: Any = None) -> Any:
        """Send a request to a stand-in, a POST if `given` is set. Returns the JSON answer."""
        where = self.compose("port", service, "9000").strip()
        data = None if given is None else json.dumps(given).encode()
        with urllib.request.urlopen(urllib.request.Request(f"http://{where}{path}", data), timeout=10) as answer:
            return json.load(answer)

    def begin(self) -> None:
        """Read the webhook's secret and set up GitHub's stand-in. Call this again after the stand-in is recreated."""
        self.secret = self.compose("exec", "-T", "webhook", "cat", "/keys/webhook/webhook-secret").strip()
        self.ask("github", "/_admin/token",
                 {"token": "compose-test-token", "id": 4711, "login": "helper[bot]", "type": "Bot"})  # fmt: skip
        self.ask("github", "/_admin/thread", {"repo": REPO, "number": 1, "pull": True, "locked": False})

    def send(self, event: str, payload: Any, delivery: str, secret: str | None = None) -> int:
        """Send one delivery through the proxy. Returns the status, or 0 without an answer."""
        body = json.dumps(payload).encode()
        signed = "sha256=" + hmac.new((secret or self.secret).encode(), body, hashlib.sha256).hexdigest()
        headers = {
            "Content-Type": "application/json", "X-GitHub-Event": event, "X-Hub-Signature-256": signed,
            "X-GitHub-Delivery": delivery,
        }  # fmt: skip
        try:
            request = urllib.request.Request("http://127.0.0.1:18080/github", body, headers)
            with urllib.request.urlopen(request, timeout=15) as answer:
                return int(answer.status)
        except OSError as error:
            return int(getattr(error, "code", 0))

    def deliver(self, event: str, payload: Any, delivery: str) -> None:
        """Send a delivery again until it is accepted, for at most 90 s."""
        ends = time.monotonic() + 90
        while (status := self.send(event, payload, delivery)) != 202:
            self.statuses.append(status)
            assert time.monotonic() < ends, f"{delivery} is not accepted: {status}"
            time.sleep(0.3)
        self.statuses.append(status)

    def assign(self, instructions: str) -> None:
        """Assign an issue to the bot, which becomes the worker's task."""
        payload = payloads.load("issues.assigned")
        payload["issue"] |= {"body": instructions, "title": "Count"}
        payload["assignee"] |= {"id": 4711, "login": "helper[bot]", "type": "Bot"}
        self.deliver("issues", payload, "the-issue")

    def answers(self, prefix: str) -> list[str]:
        """Return the last text of each posted comment that answers one of this flurry."""
        last = {write["id"]: write["body"] for write in self.ask("github", "/log")}
        return [body for body in last.values() if f"this answers {prefix}" in body]

    def flurry(self, prefix: str, count: int, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Send `count` comments from three threads and call `meanwhile`; wait until each is answered exactly once."""

        def send(first: int) -> None:
            for number in range(first, count, 3):
                self.deliver("issue_comment", comment(prefix, number), f"delivery-{prefix}{number}")
                time.sleep(0.15)

        def all_answered() -> bool:
            bodies = self.answers(prefix)
            return all(any(f"{prefix}{number};" in body for body in bodies) for number in range(count))

        senders = [threading.Thread(target=send, args=(n,)) for n in range(min(3, count))]
        for sender in senders:
            sender.start()
        time.sleep(0.5)
        meanwhile()
        for sender in senders:
            sender.join()
        eventually(all_answered, 180, f"{count} answers to {prefix}")
        bodies = self.answers(prefix)
        for number in range(count):
            found = sum(f"this answers {prefix}{number};" in body for body in bodies)
            assert found == 1, f"{prefix}{number} has {found} answers"

    # ---- the ledger --------------------------------------------------------------------------

    def ledger(self, session: str = SESSION) -> Entries:
        pages = self.python("handler", READ_LEDGER, session).splitlines()
        return [entry for page in pages for entry in json.loads(page)]

    def checked_ledger(self) -> Entries:
        """Return the ledger, after a check that it breaks no rule and that first grants follow the tickets' order."""
        ledger = self.ledger()
        found = verify(ledger)
        assert (found.inversions, found.misorders, found.violations) == (0, 0, []), found
        check_grant_order(ledger)
        return ledger


def comment(prefix: str, number: int) -> dict[str, Any]:
    body = f"@helper say {number}.\n#pace 20ms\n#say this answers {prefix}{number};"
    return payloads.comment(f"IC_{prefix}{number}", body)
