"""What `sessionctl verify` reads and says: a ledger, entry by entry, from a session or from JSON lines."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, Final

import orjson

from sessiond.client import Client
from sessiond.verify import Reader, Report, Unreadable

Entries = Iterator[tuple[str, Any]]
"""Where each entry is from, and the entry."""
COUNTS: Final = ("entries", "handoffs", "inversions", "misorders", "preemptions")
TOLD_EVERY: Final = 1000


class BadInput(Exception):
    """What was to be read is no ledger; the text says where and why, in one line."""


def of_session(client: Client, session: str) -> Entries:
    """A session's ledger, page by page. Raises SessiondError."""
    after = None
    while page := client.ledger(session, after):
        for entry in page:
            yield f"entry {entry.get('id')}", entry
        after = page[-1]["id"]


def of_file(path: str) -> Entries:
    """JSON lines, of this file or (`-`) stdin. Raises BadInput."""
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
    """Reads all of it; `show` gets what is found as it is found. Returns the counts, and how many rules were broken.

    Raises BadInput where reading ends too early; what was found before was shown.
    """
    reader, counts, broken, skipped = Reader(), dict.fromkeys(COUNTS, 0), 0, 0

    def tell() -> None:
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
            if reader.report.violations or reader.report.entries >= TOLD_EVERY:
                tell()
        skipped += not reader.known
    reader.step_over()
    tell()
    if skipped and not reader.known:
        raise BadInput(f"none of {skipped} entries is a snapshot, from which a ledger can be read")
    return counts, broken


class Printer:
    """Says it on stdout; goes on without when nobody reads that any more."""

    def __init__(self, as_json: bool) -> None:
        self._json, self._open = as_json, True

    def found(self, report: Report) -> None:
        """One line a violation: entry, invariant, text."""
        for invariant, entry, text in report.violations:
            told = {"entry": entry, "invariant": invariant, "text": text}
            self._line(told, _plain(f"{entry} {invariant} {text}"))

    def counts(self, counts: Mapping[str, int]) -> None:
        """The closing line."""
        self._line(counts, ", ".join(f"{number} {name}" for name, number in counts.items()))

    def _line(self, told: object, text: str) -> None:
        if not self._open:
            return
        try:
            print(orjson.dumps(told).decode() if self._json else text, flush=True)
        except BrokenPipeError:
            self._open = False
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _plain(text: str) -> str:
    """On one line, whatever a ledger's names have in them."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def run(entries: Entries, as_json: bool) -> int:
    """Exit status: 0 clean, 1 rules were broken. Raises BadInput, and what reading raises."""
    printer = Printer(as_json)
    counts, broken = judge(entries, printer.found)
    printer.counts(counts)
    return 1 if broken else 0
