"""Comments on GitHub, through PyGithub's requester, which does authentication, installation tokens and redirects.

By default PyGithub sleeps until a rate limit is over, up to an hour, and repeats failed requests, even writes. Both are
off here (`retry=None`). It treats a 307 of a renamed repository as success, so this module follows the redirect itself.
docs/reference/github-events.md lists the paths. The rules of rate limits:
https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api
"""

import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import quote, urlsplit

import github as pygithub
import requests
from github import Auth, GithubException
from github.Requester import Requester
from requests.utils import parse_header_links
from urllib3.exceptions import ConnectTimeoutError, MaxRetryError, NewConnectionError

from sessiond_webhook.demands.comment import Comment, CommentSource
from sessiond_webhook.poster.settings import GithubSettings, PostTimes
from sessiond_webhook.poster.threads import OutcomeUnknown, PostedComment, RateLimited, Refused, Unreachable

PAGE: Final = 100
MOST_PAGES: Final = 1000
DEFAULT_PAUSE: Final = 60.0
"""Seconds to wait after a secondary rate limit that names no time. GitHub asks for "at least one minute"."""
API_VERSION: Final = "2022-11-28"

Once = Callable[[Callable[[], int]], int]


class Github:
    """Implements `threads.Threads` on GitHub. `once` stores the id of the bot's account for later processes."""

    def __init__(self, settings: GithubSettings, times: PostTimes, once: Once = lambda ask: ask()) -> None:
        self._settings, self._once, self._own_id = settings, once, settings.bot_id
        self._installations: dict[int, Requester] = {}
        options: dict[str, Any] = {
            "base_url": settings.api_url, "timeout": times.deadline, "retry": None, "per_page": PAGE,
            "seconds_between_requests": None, "seconds_between_writes": times.pace, "user_agent": "sessiond",
            "api_version": API_VERSION, "lazy": True,
        }  # fmt: skip
        self._app: pygithub.GithubIntegration | None = None
        if settings.app_id is not None:
            self._app = pygithub.GithubIntegration(auth=Auth.AppAuth(settings.app_id, settings.app_key), **options)
        else:
            self._token = pygithub.Github(auth=Auth.Token(settings.token), **options).requester

    # ---- the port ----------------------------------------------------------------------------

    def account(self, comment: Comment) -> str:
        if self._app is None:
            return "token"
        installation = comment.installation or self._settings.installation
        return f"installation-{installation}" if installation else f"app-{comment.repo.lower()}"

    def create(self, comment: Comment, body: str) -> PostedComment:
        return self._write(comment, "POST", f"{_thread(comment)}{_reply(comment)}", body)

    def edit(self, comment: Comment, id: int, body: str) -> PostedComment:
        kind = "pulls" if comment.source is CommentSource.REVIEW_COMMENT else "issues"
        return self._write(comment, "PATCH", f"/repos/{quote(comment.repo)}/{kind}/comments/{id}", body)

    def find(self, comment: Comment, marker: str) -> PostedComment | None:
        requester, own, root = self._requester(comment), self.own_id(comment), _root(comment)
        for one in self._listed(requester, f"{_thread(comment)}/comments", comment.created_at):
            author = one.get("user") or {}
            body = str(one.get("body") or "").replace("\r\n", "\n").rstrip()
            here = root is None or one.get("in_reply_to_id") == root
            if here and author.get("id") == own and body.endswith(marker):
                return PostedComment(int(one["id"]), str(one["html_url"]), body)
        return None

    def own_id(self, comment: Comment) -> int:
        """Return the id of the bot's account, from the settings or from GitHub. An app has a bot user."""
        if self._own_id is None:
            self._own_id = self._once(lambda: self._ask_own_id(comment))
        return self._own_id

    # ---- calls -------------------------------------------------------------------------------

    def _ask_own_id(self, comment: Comment) -> int:
        if self._app is None:
            return int(self._read(self._token, "/user")[1]["id"])
        slug = self._read(self._app.requester, "/app")[1]["slug"]
        return int(self._read(self._requester(comment), f"/users/{quote(f'{slug}[bot]')}")[1]["id"])

    def _requester(self, comment: Comment) -> Requester:
        """Return a requester with a login for this comment.

        It replaces an installation token that is about to expire. If that fails, no write has begun yet.
        """
        if self._app is None:
            return self._token
        number = comment.installation or self._settings.installation or self._installation_of(comment.repo)
        if number not in self._installations:
            self._installations[number] = self._app.get_github_for_installation(number).requester
        requester = self._installations[number]
        self._guarded(lambda: requester.auth.token if requester.auth is not None else "", write=False)
        return requester

    def _installation_of(self, repo: str) -> int:
        assert self._app is not None
        return int(self._read(self._app.requester, f"/repos/{quote(repo)}/installation")[1]["id"])

    def _listed(self, requester: Requester, path: str, since: str) -> Iterator[dict[str, Any]]:
        # A note is never older than its comment. GitHub compares `since` with the time of the last change.
        url = f"{path}?per_page={PAGE}" + (f"&since={quote(since)}" if since else "")
        for _ in range(MOST_PAGES):
            headers, found = self._read(requester, url)
            if not isinstance(found, list):
                raise Unreachable("GitHub did not answer with a list of comments")
            yield from found
            links = parse_header_links(str(headers.get("link", "")))
            following = next((link["url"] for link in links if link.get("rel") == "next"), None)
            if following is None:
                return
            url = following
        raise Unreachable(f"the thread has more than {MOST_PAGES} pages of comments")

    def _read(self, requester: Requester, url: str) -> tuple[Mapping[str, Any], Any]:
        return self._call(requester, "GET", url)

    def _write(self, comment: Comment, verb: str, path: str, body: str) -> PostedComment:
        requester = self._requester(comment)
        for _ in range(3):
            headers, found = self._call(requester, verb, path, body)
            if isinstance(found, dict) and "id" in found and "html_url" in found:
                return PostedComment(int(found["id"]), str(found["html_url"]), body)
            moved = urlsplit(str(headers.get("location", "")))
            if not moved.path or moved.netloc not in ("", urlsplit(self._settings.api_url).netloc):
                break
            path = moved.geturl()
        raise OutcomeUnknown("GitHub did not answer with a comment")

    def _call(
        self, requester: Requester, verb: str, url: str, body: str | None = None
    ) -> tuple[Mapping[str, Any], Any]:
        """Return the headers, with names in lower case, and the document."""
        sent = None if body is None else {"body": body}
        headers, found = self._guarded(
            lambda: requester.requestJsonAndCheck(verb, url, input=sent), write=body is not None
        )
        return headers, found

    @staticmethod
    def _guarded(call: Callable[[], Any], *, write: bool) -> Any:
        try:
            return call()
        except GithubException as error:
            raise refusal(error.status, error.headers or {}, error.data, write=write) from error
        except requests.RequestException as error:
            if not write or _never_sent(error):
                raise Unreachable(_why(error)) from error
            raise OutcomeUnknown(_why(error)) from error
        except (ValueError, KeyError, TypeError, RuntimeError) as error:  # not JSON, or a redirect to another host
            raise (OutcomeUnknown if write else Unreachable)(_why(error)) from error


def refusal(status: int, headers: Mapping[str, Any], data: Any, *, write: bool) -> Exception:
    """Return the port's exception for a status of 400 or more."""
    lower = {str(name).lower(): str(value) for name, value in headers.items()}
    message = str(data.get("message") or "") if isinstance(data, dict) else ""
    if status == 429 or (status in (403, 422) and _is_rate_limit(status, lower, message)):
        return _rate_limited(lower)
    if status >= 500 or status == 408:
        return (OutcomeUnknown if write else Unreachable)(f"{status} {message}".strip())
    if status == 401:
        return Unreachable(f"401 {message}: GitHub does not accept the login")
    return Refused(status, message[:200])


def _is_rate_limit(status: int, headers: Mapping[str, str], message: str) -> bool:
    if status == 422:  # GitHub's answer to content that comes too fast
        return "submitted too quickly" in message
    return (
        "retry-after" in headers
        or headers.get("x-ratelimit-remaining") == "0"
        or "rate limit" in message.lower()
        or Requester.isRateLimitError(message)
    )


def _rate_limited(headers: Mapping[str, str]) -> RateLimited:
    asked = headers.get("retry-after", "")
    if asked.isdigit():
        return RateLimited(float(asked), "rate limit")
    reset = headers.get("x-ratelimit-reset", "")
    if headers.get("x-ratelimit-remaining") == "0" and reset.isdigit():
        # By GitHub's clock. One second more, because the reset is given in whole seconds.
        return RateLimited(max(0.0, float(reset) - _github_time(headers)) + 1.0, "rate limit")
    return RateLimited(DEFAULT_PAUSE, "rate limit without a time", exact=False)


def _github_time(headers: Mapping[str, str]) -> float:
    try:
        return parsedate_to_datetime(headers["date"]).timestamp()
    except (KeyError, ValueError):
        return time.time()


def _never_sent(error: requests.RequestException) -> bool:
    """Whether no connection was ever open, so that GitHub cannot have done anything."""
    cause = error.args[0] if error.args else None
    reason = cause.reason if isinstance(cause, MaxRetryError) else cause
    return isinstance(error, requests.ConnectTimeout) or isinstance(reason, NewConnectionError | ConnectTimeoutError)


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


def _thread(comment: Comment) -> str:
    kind = "pulls" if comment.source is CommentSource.REVIEW_COMMENT else "issues"
    return f"/repos/{quote(comment.repo)}/{kind}/{comment.number}"


def _root(comment: Comment) -> int | None:
    """Return the first comment of a review thread, which alone accepts replies. None outside review threads."""
    return (comment.root or comment.id) if comment.source is CommentSource.REVIEW_COMMENT else None


def _reply(comment: Comment) -> str:
    root = _root(comment)
    return "/comments" if root is None else f"/comments/{root}/replies"
