"""Record what commands print and how they exit."""

import contextlib
import faulthandler
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sessiond_ops import sessionctl
from support.goldens.files import Golden
from support.goldens.mask import SENTENCE, Mask, decoded
from support.goldens.services import PROCESS_MODULES, run_concurrently
from support.servers import Redis, Sessiond, Webhook
from support.webhook import payloads

FLAG = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")


SERVICE_VARIABLES = ("SESSIOND_", "WEBHOOK_", "REDIS_", "TASK_", "WORKER_", "POSTER_", "GITHUB_", "BOT_", "METRICS_")


SESSIONCTL = ("status", "queue", "ledger", "verify", "ask", "release", "send", "task")


CHANGING_COLUMNS = re.compile(r"(?<= v)\d+(?= )|(?<=_ms=)[\d.]+|(?<=pid\":)\d+|(?<=time\":)\d+|(?<=chars=)\d+")


SENTENCE_VALUE = re.compile(r"(?:(?<= why=)|(?<= note=)|(?<= reason=))(?![a-z-]+(?: [a-z_]+=|$)).+?(?= [a-z_]+=|$)")
"""A value that is a sentence. It ends at the next name."""

PROGRAMS = frozenset(
    {"sessiond", "sessionctl", "webhook", "handler", "worker", *(f"sessionctl {n}" for n in SESSIONCTL)}
)


COMMANDS_WITH_HELP = (
    (), *((name,) for name in SESSIONCTL), *(("task", name) for name in ("add", "list", "show", "cancel", "retry"))
)  # fmt: skip


def run_process(module: str, *words: str, given: str = "", cwd: Path | None = None, **env: str) -> Any:
    """Run a service's command in its own process. Return its exit status, stdout and stderr."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    full = {**kept, "COLUMNS": "1000", "USER": "ann", **env}
    command = [sys.executable, "-m", PROCESS_MODULES[module], *words]
    done = subprocess.run(command, env=full, input=given, capture_output=True, text=True, timeout=60, cwd=cwd)
    return done.returncode, done.stdout, done.stderr


def run_sessionctl(*words: str, given: str = "", **env: str) -> Any:
    """Run sessionctl within this process. Return its exit status, stdout and stderr."""
    before, stdin = dict(os.environ), sys.stdin
    kept = {name: value for name, value in before.items() if not name.startswith(SERVICE_VARIABLES)}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:  # sessionctl needs file descriptors
        try:
            os.environ.clear()
            os.environ.update({**kept, "COLUMNS": "1000", "USER": "ann", **env})
            sys.stdin = io.StringIO(given)
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = _status_of(words)
        finally:
            sys.stdin = stdin
            os.environ.clear()
            os.environ.update(before)
            faulthandler.unregister(signal.SIGUSR1)
        out.seek(0)
        err.seek(0)
        return status, out.read(), err.read()


def follow_ledger(session: str, **env: str) -> Any:
    """Run `sessionctl ledger --follow`, read its first entries, and press Ctrl-C."""
    command = [sys.executable, "-m", PROCESS_MODULES["sessionctl"], "ledger", session, "--follow", "--json"]
    full = {"PATH": os.environ["PATH"], **env}
    with subprocess.Popen(command, env=full, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        first = "".join(follower.stdout.readline() for _ in range(3))
        follower.send_signal(signal.SIGINT)
        follower.stdout.read()
        return follower.wait(20), first, follower.stderr.read() if follower.stderr else ""


def _status_of(words: tuple[str, ...]) -> int:
    try:
        return sessionctl.main(list(words))
    except SystemExit as end:
        return int(end.code or 0)


class CommandRecorder:
    """Runs commands and records their output."""

    def __init__(self, mask: Mask) -> None:
        self.mask = mask
        self.facts: list[Any] = []

    def __call__(self, run: Callable[..., Any], *words: str, columns: bool = True, **more: Any) -> str:
        """Run and record a command, and return its stdout.

        With `columns`, each output line consists of names and values. Otherwise each line is a sentence.
        """
        status, out, err = run(*words, **more)
        mask_line = self._columns if columns else self._sentence
        lines_of = {
            "out": [self._json(line) or mask_line(line) for line in out.splitlines()],
            "err": [self._sentence(line) for line in err.splitlines()],
        }
        fact = {"command": " ".join(self.mask.text(word) for word in words), "status": status}
        self.facts.append({**fact, **{name: lines for name, lines in lines_of.items() if lines}})
        return str(out)

    def _json(self, line: str) -> Any:
        found = decoded(line)
        if isinstance(found, dict) and "invariant" in found:
            found["text"] = SENTENCE
        return None if isinstance(found, str) else self.mask.value(found)

    def _columns(self, line: str) -> str:
        named = re.sub(r"(?<=fence=)\d+", lambda found: self.mask.fence(int(found[0])), self.mask.text(line))
        named = CHANGING_COLUMNS.sub("<number>", named)
        return re.sub(r"\([^()]* [^()]*\)", f"({SENTENCE})", SENTENCE_VALUE.sub(SENTENCE, named))

    def _sentence(self, line: str) -> str:
        program, colon, _ = line.partition(": ")
        return f"{program if program in PROGRAMS else '<program>'}: {SENTENCE}" if colon else SENTENCE


def record_session_commands(golden: Golden, mask: Mask, service: Sessiond, place: Path) -> None:
    """Record the commands that call sessiond."""
    run, session = CommandRecorder(mask), "octo/commands"
    env = {"SESSIOND_URL": service.url, "SESSIOND_KEY": service.keys["admin"]}
    run(run_sessionctl, "status", columns=False, **env)
    run(run_sessionctl, "ask", session, "hello\n#say good morning", **env)
    run(run_sessionctl, "ask", session, "hello\n#say good morning", "--json", "--priority", "0", **env)
    run(run_sessionctl, "ask", session, "#fail API Error: overloaded", **env)
    run(run_sessionctl, "queue", session, columns=False, **env)
    client = service.client()
    client.take(session, key="waits", kind="worker")
    run(run_sessionctl, "status", columns=False, **env)
    run(run_sessionctl, "status", session, "--json", **env)
    run(run_sessionctl, "status", "--json", **env)
    run(run_sessionctl, "queue", session, **env)
    run(run_sessionctl, "queue", session, "--json", **env)
    for number, words in enumerate(((), ("--json",))):
        with client.lease(session, key=f"k-{number}", holder="h") as lease:
            run(run_sessionctl, "status", columns=False, **env)
            run(run_sessionctl, "release", session, "--force", "--reason", "stuck", *words, columns=False, **env)
            lease.abandon()
    run(run_sessionctl, "release", session, "--force", "--reason", "stuck", **env)
    run(run_sessionctl, "release", session, "--force", "--reason", "stuck", "--fence", "7", **env)
    run(run_sessionctl, "ledger", session, **env)
    saved = place / "saved.jsonl"
    saved.write_text(run(run_sessionctl, "ledger", session, "--json", **env))
    run(follow_ledger, session, **env)
    run.facts[-1]["command"] = "ledger --follow --json"
    run(run_sessionctl, "verify", session, **env)
    run(run_sessionctl, "verify", "--file", str(saved), "--json", **env)
    wrong = re.sub(r'"fence":\d+', '"fence":7', saved.read_text())
    saved.write_text(wrong)
    run(run_sessionctl, "verify", "--file", str(saved), "--json", **env)
    run(run_sessionctl, "verify", "--file", "/none", **env)
    for words in ((), ("nothing",), ("queue",), ("queue", "noslash"), ("ask", session, "x", "--priority", "10")):
        run(run_sessionctl, *words, **env)
    run(run_sessionctl, "status", **{**env, "SESSIOND_KEY": "wrong"})
    run(run_sessionctl, "status", SESSIOND_URL="http://127.0.0.1:1")
    golden.put("sessions", run.facts)


def record_task_and_send_commands(
    golden: Golden, mask: Mask, redis_server: Redis, webhook: Webhook, place: Path
) -> None:
    """Record the commands that use Redis, and `send`, which calls the webhook."""
    run, env = CommandRecorder(mask), {"REDIS_URL": redis_server.url}
    session = "octo/commands"
    made = run(
        run_sessionctl, "task", "add", session, "A title", "Do it.", "--key", "k", "--turns", "3", "--usd", "1.5", **env
    )
    task = made.strip()
    run(
        run_sessionctl, "task", "add", session, "From stdin", "-", "--key", "piped", "--json", given="One.\nTwo.", **env
    )
    run(run_sessionctl, "task", "list", **env)
    run(run_sessionctl, "task", "list", session, "--state", "queued", "--json", **env)
    run(run_sessionctl, "task", "list", "octo/other", columns=False, **env)
    run(run_sessionctl, "task", "show", task, **env)
    run(run_sessionctl, "task", "show", task, "--json", **env)
    run(run_sessionctl, "task", "cancel", task, **env)
    run(run_sessionctl, "task", "cancel", task, **env)
    run(run_sessionctl, "task", "list", **env)
    run(run_sessionctl, "task", "retry", task, **env)
    run(run_sessionctl, "task", "retry", task, **env)
    run(run_sessionctl, "task", "show", "task-none-1", **env)
    run(run_sessionctl, "task", "add", "noslash", "A title", **env)
    run(run_sessionctl, "task", "list", REDIS_URL="redis://127.0.0.1:1/0")
    secret = {"WEBHOOK_SECRET": Webhook.SECRET}
    file = str(payloads.DATA / "ping.json")
    asked = place / "asked.json"
    asked.write_text(json.dumps(payloads.comment("IC_1")))
    ping = ("send", file, "--url", webhook.url, "--event", "ping", "--delivery")
    run(run_sessionctl, *ping, "s-1", **secret)
    run(run_sessionctl, *ping, "s-2", "--form", "--json", **secret)
    for words in ((), ("--json",)):
        run(
            run_sessionctl,
            "send",
            str(asked),
            "--url",
            webhook.url,
            "--event",
            "issue_comment",
            "--delivery",
            "s-3",
            *words,
            **secret,
        )
    run(run_sessionctl, "send", file, "--url", webhook.url, "--event", "star", "--delivery", "s-4", **secret)
    run(run_sessionctl, *ping, "s-5", "--secret", "wrong")
    run(run_sessionctl, "send", "/none.json", "--event", "ping", "--secret", "x")
    run(run_sessionctl, "send", file, "--event", "ping", SESSIOND_STATE_DIR=str(place))
    golden.put("tasks", run.facts)


def record_service_commands(golden: Golden, place: Path) -> None:
    """Record the options of the services' commands and their answers to invalid settings."""
    (place / "keys").write_text("")
    state = {"SESSIOND_STATE_DIR": str(place)}
    key, secret = {"SESSIOND_KEY": "k"}, {"WEBHOOK_SECRET": "x"}
    runs: list[tuple[str, tuple[str, ...], dict[str, str]]] = [
        ("sessiond", ("--check",), {**state, "SESSIOND_AGENT_COMMAND": "x"}),
        ("sessiond", ("--check",), {**state, "SESSIOND_PORT": "many"}),
        ("sessiond", ("--check",), {**state, "SESSIOND_KEYS_FILE": "/none"}),
        ("sessiond", ("--help",), {}),
        ("webhook", ("--check",), secret),
        ("webhook", ("--check",), {}),
        ("webhook", ("--help",), {}),
        ("handler", (), {"RUN_TTL": "x"}),
        ("poster", (), {"POSTER_PACE": "x"}),
        ("worker", (), {}),
        ("worker", ("nothing",), key),
        ("sessionctl", ("nothing",), {}),
    ]
    run = CommandRecorder(Mask(**{"the-directory": str(place)}))
    made = run_concurrently(*(lambda one=one: run_process(one[0], *one[1], cwd=place, **one[2]) for one in runs))
    for (name, words, _), answer in zip(runs, made, strict=True):
        if "--help" in words:
            flags = sorted(set(FLAG.findall(answer[1].partition("options:")[2])))
            run.facts.append({"status": answer[0], "options": flags})
        else:
            run(lambda *_, answer=answer: answer, *words, columns=False)
        run.facts[-1]["command"] = " ".join((name, *words))
    golden.put("processes", run.facts)
