"""sessionctl's commands for sessions: show them, ask a question, release a lease."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

from sessiond.cli import verify
from sessiond.client import AgentEvent, Client, SessiondError, connect

Run = Callable[[Client, argparse.Namespace], int]
Commands = Any
"""argparse's action that creates subcommands."""


def _with_client(run: Run) -> Callable[[argparse.Namespace], int]:
    def wrapped(options: argparse.Namespace) -> int:
        return run(connect(options.url, options.key or os.environ.get("SESSIOND_KEY") or _own_key()), options)

    return wrapped


def _own_key() -> str | None:
    state = Path(os.environ.get("SESSIOND_STATE_DIR", ".state"))
    try:
        return (state / "keys.d" / "admin").read_text().strip()
    except OSError:
        return None


def add_commands(commands: Commands) -> None:
    """Add the subcommands.

    Each sets `run`, a function from the parsed options to the exit status. It raises SessiondError.
    """

    def command(name: str, run: Run, what: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = commands.add_parser(name, help=what, description=what)
        parser.set_defaults(run=_with_client(run))
        parser.add_argument("--json", action="store_true", help="print JSON")
        parser.add_argument("--url", help="sessiond's URL (default: SESSIOND_URL)")
        parser.add_argument("--key", help="the API key (default: SESSIOND_KEY, otherwise .state/keys.d/admin)")
        return parser

    status = command("status", _status, "show the holder, the number of waiting tickets and the agent's state")
    status.add_argument("session", nargs="?", metavar="owner/repo", help="one session (default: all)")
    queue = command("queue", _queue, "show the waiting tickets in order, and why each waits")
    queue.add_argument("session", metavar="owner/repo")
    ledger = command("ledger", _ledger, "print the ledger, the record of every step")
    ledger.add_argument("session", metavar="owner/repo")
    ledger.add_argument("--follow", action="store_true", help="continue with new entries")
    ledger.add_argument("--after", help="start after the entry with this id")
    check = command("verify", _verify, "check a ledger for broken invariants")
    source = check.add_mutually_exclusive_group(required=True)
    source.add_argument("session", nargs="?", metavar="owner/repo")
    source.add_argument("--file", help="a file of JSON lines, as `ledger --json` prints them; - reads stdin")
    ask = command("ask", _ask, "run one turn and print the answer")
    ask.add_argument("session", metavar="owner/repo")
    ask.add_argument("prompt")
    ask.add_argument("--kind", choices=("handler", "worker"), default="handler", help="kind of the ticket")
    ask.add_argument("--priority", type=int, choices=range(10), metavar="0-9", help="0 is the most urgent")
    ask.add_argument("--model", help="model of this turn")
    ask.add_argument("--timeout", type=float, help="seconds to wait for the lease")
    release = command("release", _release, "end the current lease without asking its holder")
    release.add_argument("session", metavar="owner/repo")
    release.add_argument("--force", action="store_true", required=True, help="required: the holder is not asked")
    release.add_argument("--reason", required=True, help="recorded in the ledger")
    release.add_argument("--fence", type=int, help="fence of the lease to end (default: the current lease)")


def _dump(value: object) -> None:
    print(orjson.dumps(value).decode(), flush=True)


def _status(client: Client, options: argparse.Namespace) -> int:
    views = [client.view(options.session)] if options.session else client.sessions()
    if options.json:
        _dump(views[0] if options.session else views)
        return 0
    for view in views:
        print(_status_line(view))
    if not views:
        print("no sessions yet")
    return 0


def _status_line(view: Mapping[str, Any]) -> str:
    holder, draining, agent = view["holder"], view["draining"], view["agent"]
    lock = "free"
    if holder:
        lock = f"held by {holder['kind']} {holder['holder']} (fence {holder['fence']})"
    elif draining:
        lock = f"draining ({draining['why']})"
    why = f" ({agent['why']})" if agent["why"] else ""
    return f"{view['session']}: {lock}; {len(view['queue'])} wait; agent {agent['state']}{why}"


def _queue(client: Client, options: argparse.Namespace) -> int:
    queue = client.view(options.session)["queue"]
    if options.json:
        _dump(queue)
        return 0
    for ticket in queue:
        marks = [word for word in ("present", "passed_over", "lapsed") if ticket[word]] or ["absent"]
        why = ", ".join(dict.fromkeys(one["why"] for one in ticket["ahead"])) or "next"
        place = f"{ticket['position']:>3} {ticket['kind']:<7} p{ticket['priority']:<2}"
        print(place, ticket["id"], " ".join(marks) + ":", why)
    if not queue:
        print("no tickets in the queue")
    return 0


def _ledger(client: Client, options: argparse.Namespace) -> int:
    entries = client.follow_ledger(options.session, options.after) if options.follow else _entries(client, options)
    for entry in entries:
        if options.json:
            _dump(entry)
        else:
            rest = {
                k: v for k, v in entry.items() if k not in ("id", "at", "epoch", "version", "event") and v is not None
            }
            print(
                entry["at"],
                f"v{entry['version']}",
                entry["event"],
                *(f"{k}={_as_text(v)}" for k, v in rest.items()),
                flush=True,
            )
    return 0


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _entries(client: Client, options: argparse.Namespace) -> Any:
    after = options.after
    while entries := client.ledger(options.session, after):
        yield from entries
        after = entries[-1]["id"]


def _verify(client: Client, options: argparse.Namespace) -> int:
    """Return 0 if no invariant is broken, 1 if one is, 2 if the ledger cannot be read to its end."""
    try:
        file, session = options.file, options.session
        entries = verify.of_session(client, session) if file is None else verify.of_file(file)
        return verify.run(entries, options.json)
    except (verify.BadInput, SessiondError) as error:
        print(f"sessionctl: {error}", file=sys.stderr)
        return 2


def _ask(client: Client, options: argparse.Namespace) -> int:
    with client.lease(options.session, kind=options.kind, priority=options.priority, timeout=options.timeout) as lease:
        turn = lease.turn(options.prompt, model=options.model)
        for event in turn:
            if options.json and isinstance(event, AgentEvent):
                _dump({"event": "agent", "line": event.line})
            elif isinstance(event, AgentEvent) and event.text:
                print(event.text, flush=True)
        result = turn.result()
    if options.json:
        _dump(
            {
                "event": "result",
                "turn": result.turn,
                "outcome": result.outcome,
                "text": result.text,
                "reason": result.reason,
            }
        )
    if not result.completed:
        print(f"sessionctl: the turn ended as {result.outcome}: {result.reason or 'no reason given'}", file=sys.stderr)
    return 0 if result.completed else 1


def _release(client: Client, options: argparse.Namespace) -> int:
    fence = options.fence
    if fence is None:
        view = client.view(options.session)
        lease = view["holder"] or view["draining"]
        if not lease:
            print(f"sessionctl: {options.session} has no lease to end", file=sys.stderr)
            return 1
        fence = lease["fence"]
    client.force_release(options.session, fence, options.reason)
    if options.json:
        _dump({"released": fence})
    else:
        print(f"ended the lease with fence {fence}")
    return 0
