"""Comments on GitHub, through PyGithub's requester: it knows authentication, installation tokens and redirects.

PyGithub by itself sleeps until a rate limit is over (up to an hour) and repeats what failed, writes too; here it does
neither (`retry=None`). It never follows a 307 of a renamed repository and takes it for success; that is done here.
What is asked of which path: docs/github.md. Rate limits:
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

from sessiond_webhook.demands.comment import Comment, Source
from sessiond_webhook.poster.settings import GithubSettings, PostTimes
from sessiond_webhook.poster.threads import Away, Later, Never, Standing, Unknown

PAGE: Final = 100
MOST_PAGES: Final = 1000
WITHOUT_A_TIME: Final = 60.0
"""Seconds to wait after a secondary rate limit that names no time ("at least one minute")."""
API_VERSION: Final = "2022-11-28"

Once = Callable[[Callable[[], int]], int]


class Github:
    """The port of threads.py on the real thing. `once` keeps the answer to "who am I" for later processes."""

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

    def create(self, comment: Comment, body: str) -> Standing:
        return self._write(comment, "POST", f"{_thread(comment)}{_reply(comment)}", body)

    def edit(self, comment: Comment, id: int, body: str) -> Standing:
        kind = "pulls" if comment.source is Source.REVIEW_COMMENT else "issues"
        return self._write(comment, "PATCH", f"/repos/{quote(comment.repo)}/{kind}/comments/{id}", body)

    def find(self, comment: Comment, marker: str) -> Standing | None:
        requester, own, root = self._requester(comment), self.own_id(comment), _root(comment)
        for one in self._listed(requester, f"{_thread(comment)}/comments", comment.created_at):
            author = one.get("user") or {}
            body = str(one.get("body") or "").replace("\r\n", "\n").rstrip()
            here = root is None or one.get("in_reply_to_id") == root
            if here and author.get("id") == own and body.endswith(marker):
                return Standing(int(one["id"]), str(one["html_url"]), body)
        return None

    def own_id(self, comment: Comment) -> int:
        """Our account's id: as set, else from GitHub. Of an app: its bot user's."""
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
        """Logged in for this comment. An installation token that is about to expire is replaced here, before a
        write begins: its failure is then no write of unknown outcome."""
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
        # Nothing of ours is older than what it answers; GitHub counts `since` by the last change.
        url = f"{path}?per_page={PAGE}" + (f"&since={quote(since)}" if since else "")
        for _ in range(MOST_PAGES):
            headers, found = self._read(requester, url)
            if not isinstance(found, list):
                raise Away("GitHub's listing is no list")
            yield from found
            links = parse_header_links(str(headers.get("link", "")))
            following = next((link["url"] for link in links if link.get("rel") == "next"), None)
            if following is None:
                return
            url = following
        raise Away(f"more than {MOST_PAGES} pages of comments")

    def _read(self, requester: Requester, url: str) -> tuple[Mapping[str, Any], Any]:
        return self._call(requester, "GET", url)

    def _write(self, comment: Comment, verb: str, path: str, body: str) -> Standing:
        requester = self._requester(comment)
        for _ in range(3):
            headers, found = self._call(requester, verb, path, body)
            if isinstance(found, dict) and "id" in found and "html_url" in found:
                return Standing(int(found["id"]), str(found["html_url"]), body)
            moved = urlsplit(str(headers.get("location", "")))
            if not moved.path or moved.netloc not in ("", urlsplit(self._settings.api_url).netloc):
                break
            path = moved.geturl()
        raise Unknown("GitHub's answer is no comment")

    def _call(
        self, requester: Requester, verb: str, url: str, body: str | None = None
    ) -> tuple[Mapping[str, Any], Any]:
        """Headers, their names in lower case, and the document."""
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
                raise Away(_why(error)) from error
            raise Unknown(_why(error)) from error
        except (ValueError, KeyError, TypeError, RuntimeError) as error:  # no JSON, or sent elsewhere
            raise (Unknown if write else Away)(_why(error)) from error


def refusal(status: int, headers: Mapping[str, Any], data: Any, *, write: bool) -> Exception:
    """What a status of 400 and above means, as one of the port's exceptions."""
    told = {str(name).lower(): str(value) for name, value in headers.items()}
    message = str(data.get("message") or "") if isinstance(data, dict) else ""
    if status == 429 or (status in (403, 422) and _limited(status, told, message)):
        return _later(told)
    if status >= 500 or status == 408:
        return (Unknown if write else Away)(f"{status} {message}".strip())
    if status == 401:
        return Away(f"401 {message}: GitHub does not let us in")
    return Never(status, message[:200])


def _limited(status: int, headers: Mapping[str, str], message: str) -> bool:
    if status == 422:  # how content that comes too fast is refused
        return "submitted too quickly" in message
    return (
        "retry-after" in headers
        or headers.get("x-ratelimit-remaining") == "0"
        or "rate limit" in message.lower()
        or Requester.isRateLimitError(message)
    )


def _later(headers: Mapping[str, str]) -> Later:
    asked = headers.get("retry-after", "")
    if asked.isdigit():
        return Later(float(asked), "rate limit")
    reset = headers.get("x-ratelimit-reset", "")
    if headers.get("x-ratelimit-remaining") == "0" and reset.isdigit():
        # Their clock, not ours; a second more, since the reset is told in whole seconds.
        return Later(max(0.0, float(reset) - _their_time(headers)) + 1.0, "rate limit")
    return Later(WITHOUT_A_TIME, "rate limit without a time", told=False)


def _their_time(headers: Mapping[str, str]) -> float:
    try:
        return parsedate_to_datetime(headers["date"]).timestamp()
    except (KeyError, ValueError):
        return time.time()


def _never_sent(error: requests.RequestException) -> bool:
    """Whether the connection never came to be, so that nothing can have been done."""
    cause = error.args[0] if error.args else None
    reason = cause.reason if isinstance(cause, MaxRetryError) else cause
    return isinstance(error, requests.ConnectTimeout) or isinstance(reason, NewConnectionError | ConnectTimeoutError)


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


def _thread(comment: Comment) -> str:
    kind = "pulls" if comment.source is Source.REVIEW_COMMENT else "issues"
    return f"/repos/{quote(comment.repo)}/{kind}/{comment.number}"


def _root(comment: Comment) -> int | None:
    """A review comment is answered in its thread, which is named by its first comment; only that takes replies."""
    return (comment.root or comment.id) if comment.source is Source.REVIEW_COMMENT else None


def _reply(comment: Comment) -> str:
    root = _root(comment)
    return "/comments" if root is None else f"/comments/{root}/replies"
