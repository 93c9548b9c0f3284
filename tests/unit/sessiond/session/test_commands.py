"""A command, a grant and a lease never show their secret, so that no log line or traceback can."""

import pytest

from sessiond.client.lease import Grant
from sessiond.session.commands import CancelTurn, ReleaseLease, RenewLease, StartTurn, TurnRequest
from sessiond.store.codec import LeaseExtras

SECRET = "s3cr3t"
PROMPT = "what somebody wrote"


@pytest.mark.parametrize(
    "value",
    [
        RenewLease(SECRET),
        ReleaseLease(SECRET),
        StartTurn(SECRET, TurnRequest(PROMPT)),
        CancelTurn("tu-1", SECRET),
        Grant("octo/hello", "tk-1", 1, SECRET, {}),
        LeaseExtras(SECRET),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_representation_shows_no_secret_and_no_prompt(value: object) -> None:
    assert SECRET not in repr(value) and PROMPT not in repr(value)
