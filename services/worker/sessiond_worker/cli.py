"""`sessionctl task …`: list and operate tasks. It uses Redis directly, so it works while sessiond is away.

Every command's `run(options)` returns the exit status: 0 done, 1 refused or Redis is away, 2 bad input. Each error is
one line.
"""

import argparse
import os
import sys
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson
import redis

from sessiond_common.env import Env, SettingsError, load
from sessiond_common.jobs.queue import connect
from sessiond_worker.tasks.machine import TaskRefused
from sessiond_worker.tasks.model import NewTask, Task, TaskBudget, TaskSource, TaskState
from sessiond_worker.tasks.store import NoTask, Tasks

Run = Callable[[Tasks, argparse.Namespace], int]
SHOWN: Final = (
    "id", "state", "reason", "session", "title", "source", "asked_by", "budget", "used", "used_before", "turn",
    "interruptions", "outcome", "note", "ticket", "runs", "created_at", "started_at", "updated_at", "ended_at",
)  # fmt: skip


def add_commands(subparsers: Any) -> None:
    """Add `task` and its commands to argparse's subparsers. Each command sets `run(options) -> status`."""
    what = "list and operate the worker's tasks"
    task = subparsers.add_parser("task", help=what, description=what)
    commands = task.add_subparsers(required=True, metavar="COMMAND", parser_class=type(task))

    def command(name: str, run: Run, what: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = commands.add_parser(name, help=what, description=what)
        made.set_defaults(run=lambda options: _guarded(run, options))
        made.add_argument("--json", action="store_true", help="print JSON")
        return made

    add = command("add", _add, "add a task; prints its id")
    add.add_argument("session", metavar="owner/repo")
    add.add_argument("title")
    add.add_argument("instructions", nargs="?", help="what to do; - reads stdin (default: the title)")
    add.add_argument("--key", help="unique among tasks that have not ended (default: a new key)")
    add.add_argument("--turns", type=_count, help="budget in turns (default: the worker's TASK_TURNS)")
    add.add_argument("--minutes", type=_positive, help="budget in minutes of running turns (default: TASK_MINUTES)")
    add.add_argument("--usd", type=_positive, help="budget in US dollars (default: TASK_USD)")
    show_list = command("list", _list, "list tasks, oldest first")
    show_list.add_argument("session", nargs="?", metavar="owner/repo")
    show_list.add_argument("--state", choices=[state.value for state in TaskState])
    for name, run, what in (
        ("show", _show, "show everything about one task"),
        ("cancel", _cancel, "end a task; a running one stops at once"),
        ("retry", _retry, "queue an ended or stuck task again, with its whole budget"),
    ):  # fmt: skip
        command(name, run, what).add_argument("task", metavar="ID")


def redis_url(environ: Mapping[str, str] = os.environ) -> str:
    """Return REDIS_URL, else the embedded server's socket below SESSIOND_STATE_DIR.

    Raises:
        SettingsError: REDIS_URL is not valid.
    """
    socket = load(Env.state_dir, environ) / "redis" / "redis.sock"
    if not environ.get("REDIS_URL") and socket.is_socket():
        return f"unix://{socket.resolve()}"
    return load(Env.redis_url, environ)


def _guarded(run: Run, options: argparse.Namespace) -> int:
    try:
        return run(Tasks(connect(redis_url())), options)
    except (SettingsError, ValueError) as error:
        return _fail(str(error), 2)
    except (NoTask, TaskRefused) as error:
        return _fail(str(error), 1)
    except redis.RedisError as error:
        return _fail(f"cannot reach Redis: {error}; check REDIS_URL", 1)


def _fail(text: str, status: int) -> int:
    print("sessionctl:", " ".join(text.split()), file=sys.stderr)
    return status


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e9:
        raise argparse.ArgumentTypeError("must be a number above 0")
    return number


def _print(task: Task, options: argparse.Namespace, words: str) -> int:
    print(orjson.dumps(_shown(task)).decode() if options.json else words, flush=True)
    return 0


def _shown(task: Task) -> dict[str, Any]:
    return {name: getattr(task, name) for name in SHOWN}


def _add(tasks: Tasks, options: argparse.Namespace) -> int:
    text = options.instructions or options.title
    new = NewTask(
        key=options.key or f"cli-{uuid.uuid4().hex}",
        session=options.session,
        title=options.title,
        instructions=sys.stdin.read() if text == "-" else text,
        source=TaskSource("cli"),
        asked_by=os.environ.get("USER", ""),
        budget=TaskBudget(options.turns, options.minutes, options.usd),
    )
    task = tasks.add(new)
    return _print(task, options, task.id)


def _list(tasks: Tasks, options: argparse.Namespace) -> int:
    found = tasks.list(options.session, TaskState(options.state) if options.state else None)
    if options.json:
        print(orjson.dumps([_shown(task) for task in found]).decode(), flush=True)
        return 0
    for task in found:
        print(_line(task))
    if not found:
        print("no tasks")
    return 0


def _line(task: Task) -> str:
    why = f" ({task.reason or task.note})" if task.reason or task.note else ""
    return f"{task.id} {task.session} {task.state.value}{why}: {task.title}"


def _show(tasks: Tasks, options: argparse.Namespace) -> int:
    task = tasks.get(options.task)
    if options.json:
        return _print(task, options, "")
    for name, value in _shown(task).items():
        if value is not None and value != "":
            print(f"{name:<14} {value if isinstance(value, str | int) else orjson.dumps(value).decode()}")
    return 0


def _cancel(tasks: Tasks, options: argparse.Namespace) -> int:
    return _print(tasks.cancel(options.task, os.environ.get("USER", "")), options, "cancelled")


def _retry(tasks: Tasks, options: argparse.Namespace) -> int:
    return _print(tasks.retry(options.task, os.environ.get("USER", "")), options, "queued")
