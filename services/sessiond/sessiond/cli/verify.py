"""`sessionctl verify`: check the ledger of a session, or a ledger of JSON lines, entry by entry."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, Final

import orjson

from sessiond.client import Client
from sessiond.verify import Reader, Report, Unreadable

Entries = Iterator[tuple[str, Any]]
"""Pairs of an entry's position, for error messages, and the entry."""
COUNTS: Final = ("entries", "handoffs", "inversions", "misorders", "preemptions")
REPORT_EVERY: Final = 1000
"""The reader's report is taken after this many entries, so that it does not grow with the ledger."""


class BadInput(Exception):
    """The input is not a ledger. The text says where and why, in one line."""


def of_session(client: Client, session: str) -> Entries:
    """Yield the entries of a session's ledger, page by page.

    Raises:
        SessiondError: sessiond refused the request or did not answer.
    """
    after = None
    while page := client.ledger(session, after):
        for entry in page:
            yield f"entry {entry.get('id')}", entry
        after = page[-1]["id"]


def of_file(path: str) -> Entries:
    """Yield the entries of a file of JSON lines, or of stdin for `-`.

    Raises:
        BadInput: the file cannot be read, or a line is not JSON.
    """
    try:
        if path == "-":
            yield from _lines(sys.stdin.buffer)
        else:
            with open(path, "rb") as file:
                yield from _lines(file)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}") from error


def _lines(file: BinaryIO) -> Entries:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                yield f"line {number}", orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise BadInput(f"line {number}: {error}") from error


def judge(entries: Entries, show: Callable[[Report], None]) -> tuple[dict[str, int], int]:
    """Check all entries. Return the counts and the number of violations.

    `show` gets each report as soon as it has violations.

    Raises:
        BadInput: an entry is malformed, or no entry is a snapshot. `show` got everything found before.
    """
    reader, counts, broken, skipped = Reader(), dict.fromkeys(COUNTS, 0), 0, 0

    def report() -> None:
        nonlocal broken
        found = reader.take()
        for name in COUNTS:
            counts[name] += getattr(found, name)
        broken += len(found.violations)
        show(found)

    for where, entry in entries:
        try:
            reader.read(entry)
        except Unreadable as error:
            raise BadInput(f"{where}: {error}") from error
        finally:
            if reader.report.violations or reader.report.entries >= REPORT_EVERY:
                report()
        skipped += not reader.known
    reader.step_over()
    report()
    if skipped and not reader.known:
        raise BadInput(f"none of {skipped} entries is a snapshot; the check can only start at a snapshot")
    return counts, broken


class Printer:
    """Prints reports to stdout. Prints nothing more after the reader of stdout has closed it."""

    def __init__(self, as_json: bool) -> None:
        self._json, self._open = as_json, True

    def found(self, report: Report) -> None:
        """Print one line for each violation: entry, invariant, text."""
        for invariant, entry, text in report.violations:
            record = {"entry": entry, "invariant": invariant, "text": text}
            self._line(record, _one_line(f"{entry} {invariant} {text}"))

    def counts(self, counts: Mapping[str, int]) -> None:
        """Print the closing line."""
        self._line(counts, ", ".join(f"{number} {name}" for name, number in counts.items()))

    def _line(self, record: object, text: str) -> None:
        if not self._open:
            return
        try:
            print(orjson.dumps(record).decode() if self._json else text, flush=True)
        except BrokenPipeError:
            self._open = False
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _one_line(text: str) -> str:
    """Escape control characters, so that the text stays on one line for any names in the ledger."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def run(entries: Entries, as_json: bool) -> int:
    """Check the entries and print the result. Return the exit status: 0 if no invariant is broken, otherwise 1.

    Raises:
        BadInput: the input is not a ledger.
        SessiondError: from the iteration over `entries`.
    """
    printer = Printer(as_json)
    counts, broken = judge(entries, printer.found)
    printer.counts(counts)
    return 1 if broken else 0
