"""sessionctl's commands that look at sessions and do what operators do there."""

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
"""argparse's action that makes subcommands."""


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
    """Adds the subcommands; each sets `run`, from the parsed options to the exit status. They raise SessiondError."""

    def command(name: str, run: Run, what: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = commands.add_parser(name, help=what, description=what)
        made.set_defaults(run=_with_client(run))
        made.add_argument("--json", action="store_true", help="print JSON")
        made.add_argument("--url", help="sessiond's url (SESSIOND_URL)")
        made.add_argument("--key", help="the key (SESSIOND_KEY, else .state/keys.d/admin)")
        return made

    status = command("status", _status, "who holds, how many wait, the agent's state")
    status.add_argument("session", nargs="?", metavar="owner/repo")
    queue = command("queue", _queue, "who waits, in order and why")
    queue.add_argument("session", metavar="owner/repo")
    ledger = command("ledger", _ledger, "the record of every step")
    ledger.add_argument("session", metavar="owner/repo")
    ledger.add_argument("--follow", action="store_true", help="go on with what comes")
    ledger.add_argument("--after", help="begin behind this entry")
    verify = command("verify", _verify, "whether a ledger keeps the rules")
    whose = verify.add_mutually_exclusive_group(required=True)
    whose.add_argument("session", nargs="?", metavar="owner/repo")
    whose.add_argument("--file", help="JSON lines, as `ledger --json` prints them; - for stdin")
    ask = command("ask", _ask, "one turn as a handler; prints the answer")
    ask.add_argument("session", metavar="owner/repo")
    ask.add_argument("prompt")
    ask.add_argument("--kind", choices=("handler", "worker"), default="handler")
    ask.add_argument("--priority", type=int, choices=range(10), metavar="0-9")
    ask.add_argument("--model")
    ask.add_argument("--timeout", type=float, help="seconds to wait for the lease")
    release = command("release", _release, "ends the living lease")
    release.add_argument("session", metavar="owner/repo")
    release.add_argument("--force", action="store_true", required=True, help="needed: the holder is not asked")
    release.add_argument("--reason", required=True)
    release.add_argument("--fence", type=int, help="which lease; default: the one that lives now")


def _dump(value: object) -> None:
    print(orjson.dumps(value).decode(), flush=True)


def _status(client: Client, options: argparse.Namespace) -> int:
    views = [client.view(options.session)] if options.session else client.sessions()
    if options.json:
        _dump(views[0] if options.session else views)
        return 0
    for view in views:
        print(_line(view))
    if not views:
        print("no sessions yet")
    return 0


def _line(view: Mapping[str, Any]) -> str:
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
        print("nobody waits")
    return 0


def _ledger(client: Client, options: argparse.Namespace) -> int:
    entries = client.follow_ledger(options.session, options.after) if options.follow else _all(client, options)
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
                *(f"{k}={_word(v)}" for k, v in rest.items()),
                flush=True,
            )
    return 0


def _word(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _all(client: Client, options: argparse.Namespace) -> Any:
    after = options.after
    while entries := client.ledger(options.session, after):
        yield from entries
        after = entries[-1]["id"]


def _verify(client: Client, options: argparse.Namespace) -> int:
    """0 clean, 1 rules were broken, 2 whatever kept it from reading all."""
    try:
        saved, session = options.file, options.session
        entries = verify.of_session(client, session) if saved is None else verify.of_file(saved)
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
        print(f"sessionctl: the turn is {result.outcome}: {result.reason or 'no reason given'}", file=sys.stderr)
    return 0 if result.completed else 1


def _release(client: Client, options: argparse.Namespace) -> int:
    fence = options.fence
    if fence is None:
        view = client.view(options.session)
        living = view["holder"] or view["draining"]
        if not living:
            print("sessionctl: no lease lives", file=sys.stderr)
            return 1
        fence = living["fence"]
    client.force_release(options.session, fence, options.reason)
    if options.json:
        _dump({"released": fence})
    else:
        print(f"ended the lease with fence {fence}")
    return 0
