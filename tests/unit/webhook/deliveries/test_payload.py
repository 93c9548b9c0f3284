"""The members of a payload: each has its type, and an error names the member."""

from typing import Any

import pytest

from sessiond_webhook.deliveries import intents
from sessiond_webhook.deliveries.authorization import People
from sessiond_webhook.deliveries.intents import Demanded, Rules
from sessiond_webhook.deliveries.mentions import Kind, Trigger
from sessiond_webhook.deliveries.payload import BadPayload
from sessiond_webhook.demands.comment import Person
from support.webhook import payloads

ALL = Rules(Trigger(Kind.ALL), People(Person(4711, "Bot", "helper[bot]")), "bug")


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("id", True), ("id", 0), ("id", -1), ("id", 2**63), ("id", "5"), ("id", 5.0), ("node_id", "a b"),
        ("node_id", ""), ("created_at", "9999-99-99T99:99:99Z"), ("created_at", "0001-01-01T00:00:00+14:00"),
        ("created_at", "yesterday"), ("created_at", 1), ("user", "mona"), ("user", {"login": "mona"}), ("body", 5),
    ],
)  # fmt: skip
def test_an_error_names_the_member_with_a_wrong_value(member: str, value: Any) -> None:
    with pytest.raises(BadPayload, match=rf"^comment\.{member}"):
        intents.read("issue_comment", payloads.change(payloads.comment(), **{f"comment__{member}": value}), ALL)


def test_times_are_converted_to_utc_so_that_text_order_is_time_order() -> None:
    found = intents.read("issue_comment", payloads.comment(comment__created_at="2019-05-15T17:20:21+02:00"), ALL)
    assert isinstance(found, Demanded) and found.comment.created_at == "2019-05-15T15:20:21Z"
