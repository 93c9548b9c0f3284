"""Signatures of deliveries, with GitHub's own example."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessiond_webhook.deliveries.signature import sign, valid, well_formed

# docs.github.com, "Validating webhook deliveries", "Testing the webhook payload validation".
SECRET = "It's a Secret to Everybody"
BODY = b"Hello, World!"
SIGNED = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"


def test_the_signature_in_githubs_documentation_is_valid() -> None:
    assert sign(SECRET, BODY) == SIGNED
    assert valid([SECRET], SIGNED, BODY)


def test_either_of_two_secrets_is_accepted() -> None:
    assert valid(["new", SECRET], SIGNED, BODY) and valid([SECRET, "old"], SIGNED, BODY)
    assert not valid(["new", "old"], SIGNED, BODY)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "sha256=",
        SIGNED[7:],
        SIGNED.upper(),
        "sha1=" + SIGNED[7:],
        SIGNED + "0",
        SIGNED[:-1] + "é",
        SIGNED + "\n",
    ],
)
def test_any_other_signature_is_refused(header: str | None) -> None:
    assert not valid([SECRET], header, BODY)
    assert not well_formed(header)


def test_without_a_secret_nothing_is_valid() -> None:
    assert not valid([], SIGNED, BODY)
    assert not valid([""], sign("", BODY), BODY)


@given(st.binary(max_size=200), st.integers(0, 199), st.integers(1, 255))
def test_one_changed_byte_invalidates_the_signature(body: bytes, place: int, flip: int) -> None:
    header = sign(SECRET, body)
    assert valid([SECRET], header, body)
    if body:
        place %= len(body)
        assert not valid([SECRET], header, body[:place] + bytes([body[place] ^ flip]) + body[place + 1 :])
    assert not valid([SECRET], header, body + b"\n")
