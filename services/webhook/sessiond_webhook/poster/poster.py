"""The poster: it brings the notes of a thread up to date, one after another, in the order of the comments.

`run` is the rq job; `python -m sessiond_webhook.poster` takes such jobs. A note is created at most once. The poster
records that it is about to create one. If the outcome is unknown, it waits until GitHub would list the note
(`PostTimes.settle`). Then it looks for the note in the thread before it does anything else.
"""

import hashlib
import os
import sys
from typing import Final

import structlog

from sessiond_common.env import SettingsError
from sessiond_common.fault_points import hold
from sessiond_common.jobs.queue import POSTS, Jobs, connect
from sessiond_common.jobs.worker import fail, serve, stopping
from sessiond_webhook import job_metrics
from sessiond_webhook.demands.machine import Demand, DemandState, Note, seconds_between
from sessiond_webhook.demands.outbox_queue import Posts, Wait
from sessiond_webhook.demands.store import Demands
from sessiond_webhook.poster import notes
from sessiond_webhook.poster.github import Github
from sessiond_webhook.poster.outbox import Outbox
from sessiond_webhook.poster.settings import PosterSettings, poster_settings
from sessiond_webhook.poster.thread_lock import RecordChanged, ThreadLock, ThreadLockLost, try_acquire
from sessiond_webhook.poster.threads import OutcomeUnknown, PostedComment, RateLimited, Refused, Threads, Unreachable

log = structlog.get_logger("webhook.poster")
SECRET: Final = "secret-in-answer"
GONE: Final = (404, 410)
LONGEST_INEXACT_PAUSE: Final = 900.0
"""The longest pause, in seconds, after a rate limit for which GitHub named no time."""
FAIR_STEPS: Final = 5
"""Steps in one thread before the run serves another."""


def run(thread: str) -> None:
    """Bring notes up to date, as an rq job. The job was made for `thread`, but it serves the other threads too."""
    settings = poster_settings(os.environ)
    connection = connect(settings.redis_url)
    posts = Posts(Demands(connection, Jobs(connection)))
    Poster(posts, _threads(settings, posts), settings).run()


def _threads(settings: PosterSettings, posts: Posts) -> Threads:
    github = settings.github
    if not github.configured:
        return Outbox(settings.outbox)
    login = f"{github.api_url} {github.app_id or github.token}"
    name = hashlib.sha256(login.encode()).hexdigest()[:16]
    return Github(github, settings.times, lambda ask: posts.account_id(name, ask))


class _Settling(Exception):
    """A write of unknown outcome may still arrive until `until` (Redis's clock, epoch seconds)."""

    def __init__(self, until: float) -> None:
        super().__init__()
        self.until = until


class Poster:
    """One run of the poster."""

    def __init__(self, posts: Posts, threads: Threads, settings: PosterSettings) -> None:
        self._posts, self._threads, self._settings = posts, threads, settings

    def run(self) -> None:
        """Serve one thread after another, beginning with the one that waits longest, until none can be served now.

        Each thread gets a few steps at a time, so that many comments in one do not delay the answers in the others.
        """
        while (lock := self._lock_next()) is not None:
            hold("poster-claimed")
            with lock.held():
                self._serve(lock)
                hold("poster-recorded")

    def _lock_next(self) -> ThreadLock | None:
        """Lock the next thread to serve.

        Returns None if nothing is pending, or if each thread must wait or is locked by another run. That run looks
        again.
        """
        if stopping().is_set():
            return None
        for thread in self._posts.threads():
            if not self._posts.pending(thread):
                self._posts.forget(thread)
            elif not self._too_early(thread):
                lock = try_acquire(self._posts, thread, self._settings.times.lock_ttl)
                if lock is not None:
                    self._posts.served(thread)
                    return lock
        return None

    def _too_early(self, thread: str) -> bool:
        """Whether the thread must still wait. If so, a job is scheduled for that time."""
        wait = self._posts.wait(thread)
        early = wait.until > self._posts.now()
        # A scheduler whose clock is ahead of Redis's has started the scheduled job too early.
        if early and not self._posts.has_job(thread):
            self._posts.postpone(thread, wait)
        return early

    def _serve(self, lock: ThreadLock) -> None:
        """Do at most `FAIR_STEPS` steps in this thread."""
        for _ in range(FAIR_STEPS):
            demand = lock.head()
            if demand is None:
                return
            structlog.contextvars.bind_contextvars(
                session=demand.session, demand=demand.key, ticket=demand.ticket, fence=demand.fence
            )
            if stopping().is_set():
                self._posts.wake(lock.thread)
                return
            try:
                self._step(lock, demand)
            except RecordChanged:
                continue
            except ThreadLockLost:
                log.warning("another run holds the lock of this thread now", thread=lock.thread)
                return
            except (RateLimited, Unreachable, OutcomeUnknown, _Settling) as error:
                self._postpone(lock.thread, demand, error)
                return

    def _postpone(
        self, thread: str, demand: Demand, error: "RateLimited | Unreachable | OutcomeUnknown | _Settling"
    ) -> None:
        now, times = self._posts.now(), self._settings.times
        tries = self._posts.wait(thread).tries
        if isinstance(error, _Settling):
            self._posts.postpone(thread, Wait(error.until, tries))
            return
        seconds = min(times.longest, times.backoff * 2 ** min(tries, 20))
        if isinstance(error, RateLimited):
            seconds = error.seconds if error.exact else min(LONGEST_INEXACT_PAUSE, error.seconds * 2 ** min(tries, 20))
            self._posts.set_limit(self._threads.account(demand.comment), now + seconds)
        elif isinstance(error, OutcomeUnknown):
            # An edit that may still arrive must not overwrite a later one.
            seconds = max(seconds, times.settle)
        log.warning("a post is postponed", thread=thread, why=str(error)[:200], seconds=round(seconds, 1))
        self._posts.postpone(thread, Wait(now + seconds, tries + 1))

    # ---- one note ----------------------------------------------------------------------------

    def _step(self, lock: ThreadLock, demand: Demand) -> None:
        """Do one step to bring the note up to date."""
        body = notes.wanted(demand)
        if body is None:
            lock.drop(demand.key)
            return
        if self._withhold_secret(lock, demand, body):
            return
        note, sha = demand.note, notes.sha(body)
        if note is not None and note.id is not None and note.shown == sha:
            self._record_shown(lock, demand, note)
            return
        left = self._posts.limit(self._threads.account(demand.comment)) - self._posts.now()
        if left > 0:
            raise RateLimited(left, "rate limit, recorded before")
        try:
            if note is None:
                self._create(lock, demand, body)
            elif note.id is None:
                self._find_or_create(lock, demand, note, body)
            else:
                lock.renew()
                self._record_posted(lock, demand, self._threads.edit(demand.comment, note.id, body))
        except Refused as error:
            self._give_up(lock, demand, error)

    def _create(self, lock: ThreadLock, demand: Demand, body: str) -> None:
        lock.begin(demand.key, body)
        hold("poster-creation-begun")
        lock.renew()
        try:
            posted = self._threads.create(demand.comment, body)
        except (RateLimited, Unreachable, Refused):
            lock.not_begun(demand.key)
            raise
        hold("poster-created")
        self._record_posted(lock, demand, posted)

    def _find_or_create(self, lock: ThreadLock, demand: Demand, note: Note, body: str) -> None:
        """Look for a note whose creation had an unknown outcome. Create it if it does not exist."""
        settled = (note.begun or 0.0) + self._settings.times.settle
        if self._posts.now() < settled:
            raise _Settling(settled)
        posted = self._threads.find(demand.comment, notes.marker(demand.key))
        log.info("looked for a note", thread=lock.thread, found=posted is not None)
        if posted is None:
            self._create(lock, demand, body)
        else:
            lock.found(demand.key, Note(posted.id, posted.url, notes.sha(posted.body)))

    def _record_posted(self, lock: ThreadLock, demand: Demand, posted: PostedComment) -> None:
        after = self._record_shown(lock, demand, Note(posted.id, posted.url, notes.sha(posted.body)))
        log.info("posted", thread=lock.thread, state=after.state.value, url=posted.url)

    @staticmethod
    def _record_shown(lock: ThreadLock, demand: Demand, note: Note) -> Demand:
        after = lock.shown(demand.key, note)
        answer = demand.state is DemandState.ANSWERED and after.state is DemandState.POSTED
        job_metrics.POSTS.add(outcome="answer" if answer else "note")
        if answer:
            job_metrics.POSTED_SECONDS.observe(seconds_between(after.at, DemandState.OPEN, DemandState.POSTED))
        return after

    def _give_up(self, lock: ThreadLock, demand: Demand, error: Refused) -> None:
        """Record that GitHub refuses for good. If only the note is gone, create it again."""
        if error.status in GONE and demand.note is not None and demand.note.id is not None:
            lock.not_begun(demand.key)
            return
        job_metrics.POSTS.add(outcome="unpostable")
        log.warning("unpostable", thread=lock.thread, status=error.status)
        if demand.state is DemandState.ANSWERED:
            lock.fail(demand.key, f"unpostable: {error}", tell=False)
        else:
            lock.drop(demand.key)

    def _withhold_secret(self, lock: ThreadLock, demand: Demand, body: str) -> bool:
        """Return whether the body holds a secret. Such a body is not posted; a reason replaces an answer."""
        answer = demand.text if demand.state is DemandState.ANSWERED else None
        name = self._settings.secrets.found(f"{answer or ''}\n{body}")
        if name is None:
            return False
        job_metrics.POSTS.add(outcome="withheld")
        log.error("a text with a secret is not posted", thread=lock.thread, found=name)
        if demand.state is DemandState.ANSWERED:
            lock.fail(demand.key, SECRET, tell=True)
        else:
            lock.drop(demand.key)
        return True


def main() -> int:
    """Take jobs until SIGTERM. Returns the exit status: 2 if a setting is not valid."""
    try:
        settings = poster_settings(os.environ)
    except SettingsError as error:
        return fail("webhook.poster", error)
    if not settings.github.configured:
        print(
            f"webhook.poster: no GITHUB_TOKEN or GITHUB_APP_ID is set: answers go to {settings.outbox}", file=sys.stderr
        )
    for name in settings.secrets.unsearched:
        print(f"webhook.poster: {name} is too short: answers are not searched for it", file=sys.stderr)
    return serve(POSTS, settings.redis_url, log_format=settings.log_format, scheduler=True, metrics=settings.metrics)
