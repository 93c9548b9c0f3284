"""`sessionctl task …` by itself: the commands below a parser like sessionctl's."""

import argparse
import sys
from typing import NoReturn

from worker.commands import add_commands


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(2)


def main() -> int:
    parser = Parser(prog="sessionctl")
    add_commands(parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser))
    options = parser.parse_args()
    return int(options.run_task(options))


if __name__ == "__main__":
    sys.exit(main())
