"""Times as text: RFC 3339, UTC, milliseconds, `Z` at the end.

Records, the ledger and HTTP answers show these times. No rule of the lock reads them.
"""

from datetime import UTC, datetime, timedelta


def format_time(moment: datetime) -> str:
    """Format an aware `datetime`, for example `2030-01-31T12:00:00.000Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def now_text(ahead: float = 0.0) -> str:
    """Return the time `ahead` seconds from now."""
    return format_time(datetime.now(UTC) + timedelta(seconds=ahead))


def parse_time(text: str) -> datetime:
    """Parse an RFC 3339 time.

    Raises:
        ValueError: the text is not a time.
    """
    return datetime.fromisoformat(text)


def seconds_between(first: str, second: str) -> float:
    """Return the seconds from `first` to `second`; 0 if `second` is earlier."""
    return max(0.0, (parse_time(second) - parse_time(first)).total_seconds())


def seconds_since(text: str) -> float:
    """Return the seconds from this time until now; 0 if it lies in the future."""
    return max(0.0, (datetime.now(UTC) - parse_time(text)).total_seconds())
