"""`make compose-test`: the containers of docker-compose.yml from a fresh clone, with a model and a GitHub beside them.

Up; walls; a flurry through the proxy at three replicas with one killed in the middle; every service restarted in turn;
down and up again. What is said at the end is read from the ledger and from what GitHub was asked to post.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent / "services")]

import hashlib  # noqa: E402
import hmac  # noqa: E402

import payloads  # noqa: E402

ROOT = TESTS.parent
PROJECT = f"sessiond-test-{os.getpid()}"
SESSION, REPO = "codertocat/hello-world", "Codertocat/Hello-World"
SERVICES = ("redis", "sessiond", "webhook", "handler", "poster", "worker", "proxy", "prometheus", "grafana")
SEES = """
import json
from base.env import Env
import os
from sessiond.client import connect
from sessiond.verify import verify
client = connect(key=Env(os.environ).secret("SESSIOND_KEY"))
found, after = [], None
while more := client.ledger("%s", after):
    found += more
    after = more[-1]["id"]
report = verify(found)
print(json.dumps({
    "entries": report.entries, "inversions": report.inversions, "misorders": report.misorders,
    "violations": report.violations, "preemptions": report.preemptions,
    "taken": [e["key"] for e in found if e["event"] == "taken" and e["kind"] == "handler"],
    "late": [e["ticket"] for e in found if e["event"] in ("passed-over", "back")],
    "keys": {e["ticket"]: e["key"] for e in found if e["event"] == "taken"},
    "granted": [e["ticket"] for e in found if e["event"] == "granted" and e["kind"] == "handler"],
}))
"""
TURN = """
import os, sys
from base.env import Env
from sessiond.client import connect
client = connect(key=Env(os.environ).secret("SESSIOND_KEY"))
with client.lease("octo/walls", kind="worker", key="walls") as lease:
    print(lease.turn(sys.argv[1]).result().outcome)
"""
KNOCKS = """
import socket
for host, port, text in (("redis", 6379, "KEYS *"), ("sessiond", 8420, "GET /v1/sessions HTTP/1.0\\r\\n")):
    with socket.create_connection((host, port), 3) as door:
        door.sendall(f"{text}\\r\\n".encode())
        print(host, door.recv(200).decode().splitlines()[0])
"""
WALLS = (
    "id -u; id -G; "
    "for f in /proc/[0-9]*/environ; do [ -O $f ] || { cat $f >/dev/null 2>&1 && echo LEAK $f; }; done; "
    "cat /keys/sessiond/keys 2>/dev/null && echo LEAK keys; cat /keys/sessiond/redis-url 2>/dev/null && echo LEAK url; "
    "ls /keys/sessiond 2>/dev/null && echo LEAK dir; "
    f"python -c 'exec(bytes.fromhex(\"{KNOCKS.encode().hex()}\").decode())'; "
    "env | grep -iE 'github|redis|webhook|SESSIOND_K' && echo LEAK env; "
    "kill -9 1 2>/dev/null && echo LEAK kill; touch /var/lib/sessiond/x 2>/dev/null && echo LEAK state; "
    "grep -E 'Cap(Eff|Prm|Amb)|NoNewPrivs' /proc/self/status; echo walls done"
)


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
    """One compose project, from a clone of its own."""

    def __init__(self, place: Path) -> None:
        self.place = place / "clone"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(self.place)], check=True)
        standins = place / "standins"
        shutil.copytree(TESTS / "standins", standins)
        for name in ("Dockerfile", "serve.py"):
            shutil.copy(TESTS / "compose" / name, standins / name)
        kept = {
            name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_HOST", "DOCKER_CONTEXT") if name in os.environ
        }
        self.env = {**kept, "STANDINS": str(standins), "PROXY_PORT": "18080", "GRAFANA_PORT": "13000"}
        self.files = ("-f", "docker-compose.yml", "-f", "tests/compose/compose.test.yml")
        self.secret = ""
        self.statuses: list[int] = []

    def compose(self, *words: str, check: bool = True) -> str:
        command = ["docker", "compose", "-p", PROJECT, *self.files, *words]
        done = subprocess.run(command, cwd=self.place, env=self.env, capture_output=True, text=True)
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(words)}: {done.stdout[-2000:]}{done.stderr[-3000:]}")
        return done.stdout

    def up(self, replicas: int = 3, *, build: bool = False) -> None:
        more = ["--build"] if build else []
        scale = ["--scale", f"webhook={replicas}", "--scale", f"handler={replicas}"]
        self.compose("up", "-d", "--wait", "--wait-timeout", "180", *more, *scale)

    def ask(self, service: str, path: str, given: Any = None) -> Any:
        where = self.compose("port", service, "9000").strip()
        data = None if given is None else json.dumps(given).encode()
        with urllib.request.urlopen(urllib.request.Request(f"http://{where}{path}", data), timeout=10) as answer:
            return json.load(answer)

    def tell_github(self) -> None:
        self.ask("github", "/_admin/token",
                 {"token": "compose-test-token", "id": 4711, "login": "helper[bot]", "type": "Bot"})  # fmt: skip
        self.ask("github", "/_admin/thread", {"repo": REPO, "number": 1, "pull": True, "locked": False})

    def deliver(self, number: int, mark: str) -> None:
        """As GitHub does, again until it is taken."""
        body = f"@helper say {number}.\n#pace 20ms\n#say this answers {mark}{number};"
        payload = json.dumps(payloads.comment(f"IC_{mark}{number}", body)).encode()
        signed = "sha256=" + hmac.new(self.secret.encode(), payload, hashlib.sha256).hexdigest()
        headers = {
            "Content-Type": "application/json", "X-GitHub-Event": "issue_comment", "X-Hub-Signature-256": signed,
            "X-GitHub-Delivery": f"delivery-{mark}{number}",
        }  # fmt: skip
        ends = time.monotonic() + 60
        while True:
            try:
                request = urllib.request.Request("http://127.0.0.1:18080/github", payload, headers)
                with urllib.request.urlopen(request, timeout=15) as answer:
                    self.statuses.append(answer.status)
                    return
            except OSError as error:
                self.statuses.append(getattr(error, "code", 0))
                assert time.monotonic() < ends, f"delivery {mark}{number} is not taken: {error}"
                time.sleep(0.3)

    def answers(self, mark: str) -> dict[int, str]:
        """What stands last in each of our comments that answers one of this flurry."""
        last = {write["id"]: write["body"] for write in self.ask("github", "/log")}
        return {number: body for number, body in last.items() if f"this answers {mark}" in body}

    def ledger(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.compose("exec", "-T", "handler", "python", "-c", SEES % SESSION))
        return found

    def answered(self, mark: str, count: int) -> None:
        def all_of_them() -> bool:
            return (
                sum(f"this answers {mark}{n};" in b for n in range(count) for b in self.answers(mark).values()) >= count
            )

        eventually(all_of_them, 150, f"{count} answers to {mark}; {len(self.answers(mark))} are there")
        bodies = list(self.answers(mark).values())
        for n in range(count):
            assert sum(f"this answers {mark}{n};" in body for body in bodies) == 1, f"{mark}{n} once"

    def ordered(self) -> dict[str, Any]:
        found = self.ledger()
        assert (found["inversions"], found["misorders"], found["violations"]) == (0, 0, []), found
        first = [ticket for ticket in dict.fromkeys(found["granted"]) if ticket not in set(found["late"])]
        on_time = [found["keys"][ticket] for ticket in first]
        assert on_time == [key for key in found["taken"] if key in set(on_time)], on_time
        return found


def flurry(stack: Stack, mark: str, count: int, meanwhile: Callable[[], None] = lambda: None) -> None:
    def send(first: int) -> None:
        for number in range(first, count, 3):
            stack.deliver(number, mark)
            time.sleep(0.15)

    senders = [threading.Thread(target=send, args=(n,)) for n in range(3)]
    for sender in senders:
        sender.start()
    time.sleep(0.5)
    meanwhile()
    for sender in senders:
        sender.join()
    stack.answered(mark, count)


def kill_one(stack: Stack, service: str) -> None:
    """As a crash, by pid: `docker kill` would count as wanted, and nothing would start it again."""
    name = stack.compose("ps", "-q", service).split()[0]
    shown = subprocess.run(
        ["docker", "inspect", "-f", "{{.State.Pid}}", name], env=stack.env, capture_output=True, text=True, check=True
    )
    os.kill(int(shown.stdout), 9)
    say(f"kill -9 of one {service}")


def kill_both(stack: Stack) -> None:
    kill_one(stack, "webhook")
    kill_one(stack, "handler")


def walls(stack: Stack) -> None:
    command = json.dumps({"command": f"{{ {WALLS}; }} > walls.txt 2>&1"})
    told = stack.compose("exec", "-T", "worker", "python", "-c", TURN, f"#tool Bash {command}")
    seen = stack.compose("exec", "-T", "sessiond", "cat", "/var/lib/sessiond/work/octo/walls/walls.txt")
    for line in seen.splitlines():
        say(f"  the agent's tool: {line}")
    assert "completed" in told and "walls done" in seen and "LEAK" not in seen, told
    assert seen.splitlines()[0:2] == ["10003", "10003"] and "NOAUTH" in seen and " 401 " in seen


def story(stack: Stack) -> None:
    stack.up(1, build=True)
    say("up on a fresh clone, nothing edited")
    stack.secret = stack.compose("exec", "-T", "webhook", "cat", "/keys/webhook/webhook-secret").strip()
    stack.tell_github()
    walls(stack)
    say("the agent's walls stand")
    stack.up(3)
    say("three webhooks, three handlers")
    begun = time.monotonic()
    flurry(stack, "A", 18, lambda: kill_both(stack))
    say(f"18 comments, each answered once, {time.monotonic() - begun:.1f} s; statuses {sorted(set(stack.statuses))}")
    flurry(stack, "B", 9, lambda: stack.up(1))
    say("scaled down to one in the middle of a flurry: 9 more, each answered once")
    for service in SERVICES:
        stack.compose("restart", service)
        stack.up(1)
        flurry(stack, f"restart-{service}-", 1)
        say(f"{service} restarted, a comment answered")
    before = stack.ordered()
    stack.compose("down")
    stack.up(2)
    stack.tell_github()
    after = stack.ordered()
    assert after["taken"] == before["taken"] and after["entries"] >= before["entries"]
    say("down, up again: the ledger is the same, and longer")
    flurry(stack, "C", 3)
    found = stack.ordered()
    kept = {name: found[name] for name in ("entries", "inversions", "misorders", "violations", "preemptions")}
    print(json.dumps({"comments": len(found["taken"]), "order": "as taken", **kept}), flush=True)


def main() -> int:
    probe = subprocess.run(["docker", "compose", "version"], capture_output=True) if shutil.which("docker") else None
    if probe is None or probe.returncode or subprocess.run(["docker", "info"], capture_output=True).returncode:
        print("compose-test: skipped, no engine with `docker compose` answers here")
        return 0
    with tempfile.TemporaryDirectory(prefix="compose-test-") as place:
        stack = Stack(Path(place))
        try:
            story(stack)
            return 0
        except AssertionError as error:
            say(f"FAILED: {error}")
            print(stack.compose("logs", "--no-color", "--tail", "40", check=False)[-12000:])
            return 1
        finally:
            stack.compose("down", "-v", "--remove-orphans", "-t", "5", check=False)


if __name__ == "__main__":
    sys.exit(main())
