"""The poster: brings the notes of a thread up to date, one after another, the earliest comment's first.

`run` is the rq job; `python -m sessiond_webhook.poster` takes such jobs. A note is created once: that its creation
begins is durable before it does, and after an outcome that nobody knows the thread is listed for the note before
anything else is done, once what may still be on its way has had its time (PostTimes.settle).
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
from sessiond_webhook.demands.machine import Demand, Note, State, seconds_between
from sessiond_webhook.demands.outbox_queue import Posts, Wait
from sessiond_webhook.demands.store import Demands
from sessiond_webhook.poster import notes
from sessiond_webhook.poster.github import Github
from sessiond_webhook.poster.outbox import Outbox
from sessiond_webhook.poster.settings import PosterSettings, poster_settings
from sessiond_webhook.poster.thread_lock import Changed, Claim, ClaimLost
from sessiond_webhook.poster.thread_lock import claim as claimed
from sessiond_webhook.poster.threads import Away, Later, Never, Standing, Threads, Unknown

log = structlog.get_logger("webhook.poster")
SECRET: Final = "secret-in-answer"
GONE: Final = (404, 410)
LONGEST_UNTOLD: Final = 900.0
FAIR_STEPS: Final = 5
"""Notes of one thread that are seen to in one go."""


def run(thread: str) -> None:
    """The rq job: brings notes up to date. `thread` is what it was made for, and is one of those that it looks at."""
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
    """What was begun may still be on its way, until `until` (Redis's clock, epoch seconds)."""

    def __init__(self, until: float) -> None:
        super().__init__()
        self.until = until


class Poster:
    """One run."""

    def __init__(self, posts: Posts, threads: Threads, settings: PosterSettings) -> None:
        self._posts, self._threads, self._settings = posts, threads, settings

    def run(self) -> None:
        """One thread after another, the one that was served longest ago first, until none can be served now.

        A thread gets a few notes at a time: a flurry in one does not keep the others' answers waiting.
        """
        while (claim := self._next()) is not None:
            hold("poster-claimed")
            with claim.kept():
                self._all(claim)
                hold("poster-recorded")

    def _next(self) -> Claim | None:
        """The thread to serve. None: nothing is pending, or other runs have it (they look again), or it must wait."""
        if stopping().is_set():
            return None
        for thread in self._posts.threads():
            if not self._posts.pending(thread):
                self._posts.forget(thread)
            elif not self._too_early(thread):
                claim = claimed(self._posts, thread, self._settings.times.claim)
                if claim is not None:
                    self._posts.served(thread)
                    return claim
        return None

    def _too_early(self, thread: str) -> bool:
        """Whether it has to wait still. By then a job is there: the one that was, or a new one."""
        wait = self._posts.wait(thread)
        early = wait.until > self._posts.now()
        # A scheduler whose clock is ahead of Redis's has spent the job that was there for then.
        if early and not self._posts.awake(thread):
            self._posts.put_off(thread, wait)
        return early

    def _all(self, claim: Claim) -> None:
        """At most `FAIR_STEPS` steps; what is left is for the next time."""
        for _ in range(FAIR_STEPS):
            demand = claim.head()
            if demand is None:
                return
            structlog.contextvars.bind_contextvars(
                session=demand.session, demand=demand.key, ticket=demand.ticket, fence=demand.fence
            )
            if stopping().is_set():
                self._posts.wake(claim.thread)
                return
            try:
                self._one(claim, demand)
            except Changed:
                continue
            except ClaimLost:
                log.warning("another run has the thread", thread=claim.thread)
                return
            except (Later, Away, Unknown, _Settling) as error:
                self._put_off(claim.thread, demand, error)
                return

    def _put_off(self, thread: str, demand: Demand, error: "Later | Away | Unknown | _Settling") -> None:
        now, times = self._posts.now(), self._settings.times
        tries = self._posts.wait(thread).tries
        if isinstance(error, _Settling):
            self._posts.put_off(thread, Wait(error.until, tries))
            return
        seconds = min(times.longest, times.backoff * 2 ** min(tries, 20))
        if isinstance(error, Later):
            seconds = error.seconds if error.told else min(LONGEST_UNTOLD, error.seconds * 2 ** min(tries, 20))
            self._posts.set_limit(self._threads.account(demand.comment), now + seconds)
        elif isinstance(error, Unknown):
            # An edit that is still on its way must not land on top of a later one.
            seconds = max(seconds, times.settle)
        log.warning("put off", thread=thread, why=str(error)[:200], seconds=round(seconds, 1))
        self._posts.put_off(thread, Wait(now + seconds, tries + 1))

    # ---- one note ----------------------------------------------------------------------------

    def _one(self, claim: Claim, demand: Demand) -> None:
        """One step towards a note that is up to date."""
        body = notes.wanted(demand)
        if body is None:
            claim.drop(demand.key)
            return
        if self._secret(claim, demand, body):
            return
        note, sha = demand.note, notes.sha(body)
        if note is not None and note.id is not None and note.shown == sha:
            self._stands(claim, demand, note)
            return
        left = self._posts.limit(self._threads.account(demand.comment)) - self._posts.now()
        if left > 0:
            raise Later(left, "rate limit, as told before")
        try:
            if note is None:
                self._create(claim, demand, body)
            elif note.id is None:
                self._look_for(claim, demand, note, body)
            else:
                claim.renew()
                self._shown(claim, demand, self._threads.edit(demand.comment, note.id, body))
        except Never as error:
            self._refused(claim, demand, error)

    def _create(self, claim: Claim, demand: Demand, body: str) -> None:
        claim.begin(demand.key, body)
        hold("poster-creation-begun")
        claim.renew()
        try:
            standing = self._threads.create(demand.comment, body)
        except (Later, Away, Never):
            claim.not_begun(demand.key)
            raise
        hold("poster-created")
        self._shown(claim, demand, standing)

    def _look_for(self, claim: Claim, demand: Demand, note: Note, body: str) -> None:
        """A creation was begun, and nobody knows what became of it."""
        settled = (note.begun or 0.0) + self._settings.times.settle
        if self._posts.now() < settled:
            raise _Settling(settled)
        standing = self._threads.find(demand.comment, notes.marker(demand.key))
        log.info("looked for a note", thread=claim.thread, found=standing is not None)
        if standing is None:
            self._create(claim, demand, body)
        else:
            claim.found(demand.key, Note(standing.id, standing.url, notes.sha(standing.body)))

    def _shown(self, claim: Claim, demand: Demand, standing: Standing) -> None:
        after = self._stands(claim, demand, Note(standing.id, standing.url, notes.sha(standing.body)))
        log.info("posted", thread=claim.thread, state=after.state.value, url=standing.url)

    @staticmethod
    def _stands(claim: Claim, demand: Demand, note: Note) -> Demand:
        after = claim.shown(demand.key, note)
        answer = demand.state is State.ANSWERED and after.state is State.POSTED
        job_metrics.POSTS.add(outcome="answer" if answer else "note")
        if answer:
            job_metrics.POSTED_SECONDS.observe(seconds_between(after.at, State.OPEN, State.POSTED))
        return after

    def _refused(self, claim: Claim, demand: Demand, error: Never) -> None:
        """GitHub refuses for good. Our comment alone may be gone: then it is created anew."""
        if error.status in GONE and demand.note is not None and demand.note.id is not None:
            claim.not_begun(demand.key)
            return
        job_metrics.POSTS.add(outcome="unpostable")
        log.warning("unpostable", thread=claim.thread, status=error.status)
        if demand.state is State.ANSWERED:
            claim.fail(demand.key, f"unpostable: {error}", tell=False)
        else:
            claim.drop(demand.key)

    def _secret(self, claim: Claim, demand: Demand, body: str) -> bool:
        """Whether the body must not be posted; an answer's place is taken by that reason."""
        answer = demand.text if demand.state is State.ANSWERED else None
        name = self._settings.secrets.found(f"{answer or ''}\n{body}")
        if name is None:
            return False
        job_metrics.POSTS.add(outcome="withheld")
        log.error("a secret is withheld", thread=claim.thread, found=name)
        if demand.state is State.ANSWERED:
            claim.fail(demand.key, SECRET, tell=True)
        else:
            claim.drop(demand.key)
        return True


def main() -> int:
    """Takes jobs until SIGTERM. Exit status 2 when a setting is not valid."""
    try:
        settings = poster_settings(os.environ)
    except SettingsError as error:
        return fail("webhook.poster", error)
    if not settings.github.configured:
        print(f"webhook.poster: no GITHUB_TOKEN or GITHUB_APP_ID: answers go to {settings.outbox}", file=sys.stderr)
    for name in settings.secrets.unsearched:
        print(f"webhook.poster: {name} is too short to be searched for in answers", file=sys.stderr)
    return serve(POSTS, settings.redis_url, log_format=settings.log_format, scheduler=True, metrics=settings.metrics)
