"""The GitHub adapter against the loopback GitHub: paths, authentication, refusals, lists."""

import socket
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from sessiond_webhook.demands.comment import Comment, CommentSource
from sessiond_webhook.poster import notes
from sessiond_webhook.poster.github import Github as Adapter
from sessiond_webhook.poster.github import refusal
from sessiond_webhook.poster.settings import GithubSettings, PostTimes
from sessiond_webhook.poster.threads import OutcomeUnknown, RateLimited, Refused, Unreachable
from support.servers import Github
from support.webhook.posting import a_comment

TIMES = PostTimes(deadline=1, pace=0.001)
MARK = notes.marker("IC_1")


def with_token(github: Github, token: str = Github.TOKEN) -> Adapter:
    return Adapter(GithubSettings(github.url, token), TIMES)


@pytest.fixture(scope="module")
def app_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def with_app(github: Github, key: rsa.RSAPrivateKey, ttl: float = 3600, **more: Any) -> Adapter:
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    github.order("app", id=12, slug="sessiond", public_key=public.decode(), bot_id=9100, installations={"octo": 5},
                 token_ttl=ttl)  # fmt: skip
    return Adapter(GithubSettings(github.url, app_id=12, app_key=private.decode(), **more), TIMES)


def reviewed(root: int, **more: Any) -> Comment:
    given = {"created_at": "2026-01-01T00:00:00Z", **more}
    return a_comment(number=2, source=CommentSource.REVIEW_COMMENT, root=root, **given)


def test_each_kind_of_comment_has_its_path(github: Github) -> None:
    adapter = with_token(github)
    root = github.comment(2, kind="review")
    for comment in (a_comment(), a_comment(number=2, source=CommentSource.REVIEW), reviewed(root)):
        made = adapter.create(comment, f"seen\n\n{MARK}")
        again = adapter.edit(comment, made.id, f"so\n\n{MARK}")
        assert (again.id, again.url) == (made.id, made.url)
        assert adapter.find(comment, MARK) == replace(again, body=f"so\n\n{MARK}")
    paths = [(one["method"], one["path"]) for one in github.requests() if one["method"] != "GET"]
    ids = [one["id"] for one in github.log()]
    assert paths == [
        ("POST", "/repos/Octo/Hello/issues/1/comments"), ("PATCH", f"/repos/Octo/Hello/issues/comments/{ids[0]}"),
        ("POST", "/repos/Octo/Hello/issues/2/comments"), ("PATCH", f"/repos/Octo/Hello/issues/comments/{ids[2]}"),
        ("POST", f"/repos/Octo/Hello/pulls/2/comments/{root}/replies"),
        ("PATCH", f"/repos/Octo/Hello/pulls/comments/{ids[4]}"),
    ]  # fmt: skip


def test_an_answer_to_a_reply_goes_to_the_first_comment_of_its_thread(github: Github) -> None:
    root = github.comment(2, kind="review")
    reply = github.comment(2, kind="review", in_reply_to_id=root)
    with_token(github).create(reviewed(root, id=reply), "so")
    with pytest.raises(Refused, match="422"):
        with_token(github).create(reviewed(reply), "so")


def test_find_reads_all_pages_and_accepts_only_our_account(github: Github) -> None:
    adapter, comment = with_token(github), a_comment(created_at="2020-01-01T00:00:00Z")
    github.comment(1, f"x\n\n{MARK}")
    github.comment(1, count=1500)
    assert adapter.find(comment, MARK) is None
    github.comment(1, f"{MARK} in the middle of a text", author=dict(Github.BOT))
    made = github.comment(1, f"x\r\n\r\n{MARK}\n", author=dict(Github.BOT))
    found = adapter.find(comment, MARK)
    assert found is not None and found.id == made
    listed = [one for one in github.requests() if "comments" in one["path"]]
    assert len(listed) == 32
    assert all("per_page=100" in one["path"] for one in listed)
    later = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert adapter.find(replace(comment, created_at=later), MARK) is None
    assert len([one for one in github.requests() if one["path"] == "/user"]) == 1, "the account is requested once"


def test_a_note_of_another_review_thread_is_not_found(github: Github) -> None:
    adapter = with_token(github)
    roots = [github.comment(2, kind="review") for _ in range(2)]
    adapter.create(reviewed(roots[0]), f"x\n\n{MARK}")
    assert adapter.find(reviewed(roots[1]), MARK) is None
    assert adapter.find(reviewed(roots[0]), MARK) is not None


def test_the_id_of_our_account_can_be_set(github: Github) -> None:
    adapter = Adapter(GithubSettings(github.url, Github.TOKEN, bot_id=77), TIMES)
    github.comment(1, f"x\n\n{MARK}")
    assert adapter.find(a_comment(), MARK) is not None
    assert all(one["path"] != "/user" for one in github.requests())


def test_a_wrong_token_is_not_a_permanent_refusal(github: Github) -> None:
    with pytest.raises(Unreachable, match="401"):
        with_token(github, "ghp_wrong").create(a_comment(), "x")


@pytest.mark.parametrize("installation", ["comment", "settings", "asked"])
def test_an_app_posts_as_its_bot(github: Github, app_key: rsa.RSAPrivateKey, installation: str) -> None:
    adapter = with_app(github, app_key, installation=5 if installation == "settings" else None)
    comment = a_comment(installation=5 if installation == "comment" else None)
    made = adapter.create(comment, f"x\n\n{MARK}")
    adapter.edit(comment, made.id, f"y\n\n{MARK}")
    found = adapter.find(comment, MARK)
    assert found is not None and found.id == made.id
    assert {one["author"] for one in github.log()} == {9100}
    asked = [one["path"] for one in github.requests()]
    assert asked.count("/app/installations/5/access_tokens") == 1
    assert ("/repos/Octo/Hello/installation" in asked) is (installation == "asked")
    assert adapter.account(comment) == ("app-octo/hello" if installation == "asked" else "installation-5")


def test_an_installation_token_is_replaced_before_it_expires(github: Github, app_key: rsa.RSAPrivateKey) -> None:
    adapter, comment = with_app(github, app_key, ttl=22), a_comment(installation=5)
    adapter.create(comment, "one")
    adapter.create(comment, "two")
    time.sleep(3.1)
    adapter.create(comment, "three")
    asked = [one["path"] for one in github.requests()]
    assert asked.count("/app/installations/5/access_tokens") == 2
    assert {one["status"] for one in github.requests()} == {201}


def test_an_app_without_its_token_did_not_write(github: Github, app_key: rsa.RSAPrivateKey) -> None:
    adapter = with_app(github, app_key)
    github.fault("cut", "access_tokens")
    with pytest.raises(Unreachable):
        adapter.create(a_comment(installation=5), "x")
    with pytest.raises(Refused, match="404"):
        adapter.create(a_comment(installation=6), "x")
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    stranger = with_app(github, other)
    with_app(github, app_key)
    with pytest.raises(Unreachable, match="401"):
        stranger.create(a_comment(installation=5), "x")
    assert github.log() == []


OUTCOMES: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "primary": ({"mode": "primary", "seconds": 5}, RateLimited),
    "secondary": ({"mode": "secondary", "seconds": 5}, RateLimited),
    "secondary, 429": ({"mode": "secondary", "seconds": 5, "status": 429}, RateLimited),
    "500": ({"mode": "error", "status": 500}, OutcomeUnknown),
    "502": ({"mode": "error", "status": 502}, OutcomeUnknown),
    "cut": ({"mode": "cut"}, OutcomeUnknown),
    "drop": ({"mode": "drop"}, OutcomeUnknown),
    "slow": ({"mode": "delay", "seconds": 1.5}, OutcomeUnknown),
}


@pytest.mark.parametrize(("fault", "outcome"), OUTCOMES.values(), ids=OUTCOMES)
def test_a_write_that_fails_is_tried_once_and_its_error_is_classified(
    github: Github, fault: dict[str, Any], outcome: type[Exception]
) -> None:
    github.fault(**fault)
    began = time.monotonic()
    with pytest.raises(outcome) as failed:
        with_token(github).create(a_comment(), "x")
    assert time.monotonic() - began < 2, "the adapter must not sleep"
    assert len(github.requests()) == 1
    if isinstance(failed.value, RateLimited):
        assert 4 <= failed.value.seconds <= 7
        assert failed.value.exact


@pytest.mark.parametrize("fault", [{"mode": "error"}, {"mode": "drop"}, {"mode": "delay", "seconds": 1.5}])
def test_a_read_that_fails_did_nothing(github: Github, fault: dict[str, Any]) -> None:
    github.fault(match="GET .*comments", **fault)
    with pytest.raises(Unreachable):
        with_token(github).find(a_comment(), MARK)
    assert len([one for one in github.requests() if "comments" in one["path"]]) == 1


def test_a_write_that_was_never_sent_did_nothing() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(Unreachable):
            Adapter(GithubSettings(nobody, Github.TOKEN), TIMES).create(a_comment(), "x")


def test_permanent_refusals_are_recognized(github: Github) -> None:
    adapter = with_token(github)
    made = adapter.create(a_comment(), "x")
    with pytest.raises(Refused, match="404"):
        adapter.create(a_comment(number=404), "x")
    with pytest.raises(Refused, match="404"):
        adapter.edit(a_comment(), made.id + 1, "x")
    with pytest.raises(Refused, match="422"):
        adapter.create(a_comment(), "x" * 65_537)
    with pytest.raises(Refused, match="403"):
        adapter.edit(a_comment(), github.comment(1), "not mine")
    github.thread(1, locked=True)
    with pytest.raises(Refused, match="403 Unable to create comment because issue is locked"):
        adapter.create(a_comment(), "x")


def test_a_moved_repository_is_followed(github: Github) -> None:
    """GitHub answers a write with 307. A library that treats it as success would lose the answer."""
    github.order("move", **{"from": "Octo/Hello", "to": "Octo/Renamed"})
    adapter = with_token(github)
    made = adapter.create(a_comment(), f"x\n\n{MARK}")
    adapter.edit(a_comment(), made.id, f"y\n\n{MARK}")
    found = adapter.find(a_comment(), MARK)
    assert found is not None and found.id == made.id
    assert [one["thread"] for one in github.log()] == ["Octo/Renamed#1"] * 2


LIMITS: list[tuple[int, dict[str, str], str, float, bool]] = [
    (403, {"Retry-After": "30"}, "", 30, True),
    (429, {"retry-after": "30"}, "", 30, True),
    (429, {}, "", 60, False),
    (403, {}, "You have exceeded a secondary rate limit. Please wait a few minutes before you try again.", 60, False),
    (403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1767225700",
           "Date": "Thu, 01 Jan 2026 00:00:00 GMT"}, "API rate limit exceeded for user ID 1.", 101, True),
    (403, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1767225500",
           "Date": "Thu, 01 Jan 2026 00:00:00 GMT"}, "API rate limit exceeded", 1, True),
    (422, {}, "was submitted too quickly", 60, False),
]  # fmt: skip


@pytest.mark.parametrize(("status", "headers", "message", "seconds", "exact"), LIMITS)
def test_rate_limits_are_recognized_by_status_headers_and_text(
    status: int, headers: dict[str, str], message: str, seconds: float, exact: bool
) -> None:
    """GitHub's reset time uses its own clock, so the wait counts from the date of the answer."""
    found = refusal(status, headers, {"message": message}, write=True)
    assert isinstance(found, RateLimited)
    assert (found.seconds, found.exact) == (seconds, exact)


@pytest.mark.parametrize("status", [400, 403, 404, 410, 422, 451])
def test_other_refusals_are_permanent(status: int) -> None:
    found = refusal(status, {"x-ratelimit-remaining": "4999"}, {"message": "no"}, write=True)
    assert isinstance(found, Refused) and found.status == status
    assert isinstance(refusal(status, {}, "<html>", write=True), Refused)


def test_bad_settings_end_the_poster_with_one_line() -> None:
    env = {"GITHUB_TOKEN": "ghp_12345678", "GITHUB_APP_ID": "x"}
    done = subprocess.run([sys.executable, "-m", "sessiond_webhook.poster"], env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "GITHUB_APP_ID" in done.stderr
