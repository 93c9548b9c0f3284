"""`sessionctl`: the commands of every service in one program."""

import argparse
import faulthandler
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from sessiond.cli import commands as sessions
from sessiond.client import BadName, SessiondError
from sessiond_webhook import cli as deliveries
from sessiond_worker import cli as tasks


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(2)


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns 0 done, 1 refused or not completed, 2 bad input, 130 Ctrl-C. Each error is one line."""
    faulthandler.register(signal.SIGUSR1)
    options = _parser().parse_args(argv)
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


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="sessionctl", description="Show and operate sessions, tasks and deliveries.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    for service in (sessions, tasks, deliveries):
        service.add_commands(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
