"""Times as text: one format for all records, and differences that are never negative."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from sessiond_common import clock


def test_a_time_has_milliseconds_and_is_utc() -> None:
    moment = datetime(2030, 1, 31, 14, 0, 0, 123999, timezone(timedelta(hours=2)))
    assert clock.format_time(moment) == "2030-01-31T12:00:00.123Z"
    assert clock.format_time(datetime(2030, 1, 31, tzinfo=UTC)) == "2030-01-31T00:00:00.000Z"


def test_now_lies_between_before_and_after() -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    found = clock.parse_time(clock.now_text())
    assert before <= found <= datetime.now(UTC)
    assert clock.seconds_between(clock.now_text(), clock.now_text(ahead=60)) >= 59.9


def test_differences_are_never_negative() -> None:
    first, second = "2030-01-31T12:00:00.000Z", "2030-01-31T12:00:01.500Z"
    assert clock.seconds_between(first, second) == 1.5
    assert clock.seconds_between(second, first) == 0
    assert clock.seconds_since(clock.now_text(ahead=60)) == 0
    assert 59.9 < clock.seconds_since(clock.now_text(ahead=-60)) < 120


def test_a_text_that_is_not_a_time_is_refused() -> None:
    with pytest.raises(ValueError, match="yesterday"):
        clock.parse_time("yesterday")
