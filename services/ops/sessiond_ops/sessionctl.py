"""`sessionctl`: the commands of every service in one program."""

import argparse
import faulthandler
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from sessiond.cli import commands as sessions
from sessiond.client import BadName, SessiondError
from sessiond_common.extras import ExtraMissing, import_with_extra


@dataclass(frozen=True, slots=True)
class ServiceCommand:
    """A command of the extra `services`: its module is imported only when the command is called."""

    name: str
    module: str
    what: str


SERVICE_COMMANDS: Final = (
    ServiceCommand("task", "sessiond_worker.cli", "list and operate the worker's tasks"),
    ServiceCommand("send", "sessiond_webhook.cli", "sign a payload and post it to the webhook"),
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(2)


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns 0 done, 1 refused or not completed, 2 bad input, 130 Ctrl-C. Each error is one line."""
    faulthandler.register(signal.SIGUSR1)
    words = sys.argv[1:] if argv is None else argv
    try:
        options = _parser(words[0] if words else "").parse_args(words)
    except ExtraMissing as error:
        print(f"sessionctl: {words[0]}: {error}", file=sys.stderr)
        return 2
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except BadName as error:
        print(f"sessionctl: {error}", file=sys.stderr)
        return 2
    except SessiondError as error:
        print(f"sessionctl: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser(called: str) -> argparse.ArgumentParser:
    parser = _Parser(prog="sessionctl", description="Show and operate sessions, tasks and deliveries.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    sessions.add_commands(commands)
    for command in SERVICE_COMMANDS:
        _add(command, called, commands)
    return parser


def _add(command: ServiceCommand, called: str, commands: Any) -> None:
    """Add the whole command if it is the called one, otherwise only its line in the help.

    Raises:
        ExtraMissing: The called command needs the extra `services`, which is not installed.
    """
    if command.name == called:
        import_with_extra(command.module, "services").add_commands(commands)
    else:
        commands.add_parser(command.name, help=command.what)


if __name__ == "__main__":
    sys.exit(main())
