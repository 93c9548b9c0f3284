"""The `sessiond` command: settings from the environment, gunicorn with one gevent worker."""

import argparse
import contextlib
import faulthandler
import os
import signal
import sys
from typing import Any

from sessiond.http.keys import Keys, KeysError
from sessiond.http.keys import read as read_keys
from sessiond.settings import Settings, SettingsError, from_env
from sessiond_common.log import setup


def main(argv: list[str] | None = None) -> int:
    """Runs until SIGTERM or SIGINT. Exit 2, with one line, for bad settings."""
    parser = argparse.ArgumentParser(
        prog="sessiond", description="Shares one Claude Code conversation in strict order."
    )
    parser.add_argument("--check", action="store_true", help="read settings and keys, say so, and end")
    options = parser.parse_args(argv)
    try:
        settings = from_env()
        keys = read_keys(settings.keys_file)
        _check_agent(settings)
    except (SettingsError, KeysError) as error:
        print(f"sessiond: {error}", file=sys.stderr)
        return 2
    if options.check:
        print("sessiond: settings and keys are valid")
        return 0
    _serve(settings, keys)
    return 0


def _check_agent(settings: Settings) -> None:
    from sessiond.agent.process.claude_binary import NoClaude, find_claude

    if settings.agent_command:
        return
    try:
        find_claude()
    except NoClaude as error:
        raise SettingsError(str(error)) from error


def _serve(settings: Settings, keys: Keys) -> None:
    from gunicorn.app.base import BaseApplication

    class Server(BaseApplication):  # type: ignore[misc]
        def load_config(self) -> None:
            for name, value in _gunicorn(settings).items():
                self.cfg.set(name, value)

        def load(self) -> Any:
            return _application(settings, keys)

    faulthandler.enable()
    _tell_stacks()
    _keep_sigterm_for_workers()
    Server().run()


def _keep_sigterm_for_workers() -> None:
    """A worker is forked with SIGTERM blocked, until it has handlers for it (`_after_init`).

    Before that it has the master's, which would swallow the signal: stopping just after a start would take the
    master's whole patience.
    """
    master = os.getpid()

    def masked(how: int) -> None:
        if os.getpid() == master:
            signal.pthread_sigmask(how, {signal.SIGTERM})

    os.register_at_fork(before=lambda: masked(signal.SIG_BLOCK), after_in_parent=lambda: masked(signal.SIG_UNBLOCK))


def _gunicorn(settings: Settings) -> dict[str, Any]:
    return {
        "bind": f"{settings.host}:{settings.port}",
        "worker_class": "sessiond_common.gunicorn_worker.Worker",
        "workers": 1,
        "worker_connections": 6000,
        "backlog": 4096,
        "keepalive": 120,
        "timeout": 60,
        "graceful_timeout": 12,
        "control_socket_disable": True,
        "http_parser": "python",
        "accesslog": None,
        "logger_class": "sessiond.main.Quiet",
        "when_ready": lambda _: _tell_stacks(),
        "post_worker_init": _after_init,
        "worker_int": _stop,
        "worker_exit": _exit,
        "proc_name": "sessiond",
    }


def _tell_stacks() -> None:
    """SIGUSR1 writes the stacks to stderr, through the C handler: it also speaks when the hub is stuck.

    Registered anew: what a parent registered is inherited as done, though gunicorn has since set a handler of its own.
    """
    faulthandler.unregister(signal.SIGUSR1)
    faulthandler.register(signal.SIGUSR1, all_threads=True)


_RUNNING: list[Any] = []


def _application(settings: Settings, keys: Keys) -> Any:
    """Built in the worker, after gevent has patched: no connection and no agent is ever the master's."""
    from sessiond import metrics
    from sessiond.http.app import create_app
    from sessiond.http.board.signin import instance_secret
    from sessiond.service.gauges import Gauges
    from sessiond.service.registry import SessionRegistry

    setup.configure(settings.log_format)
    sessions = SessionRegistry(settings)
    sessions.start()
    metrics.REGISTRY.register(Gauges(sessions.running))
    _RUNNING.append(sessions)
    return create_app(sessions, keys, instance_secret(settings.state_dir / "board-secret"))


def _after_init(worker: Any) -> None:
    """Signals of the worker: USR1 dumps stacks, TERM first answers everybody who is parked."""
    import gevent

    _tell_stacks()
    before = signal.getsignal(signal.SIGTERM)
    # By then everybody was answered and no stream goes on. The master keeps its longer patience.
    worker.cfg.set("graceful_timeout", 1)

    def term(number: int, frame: Any) -> None:
        gevent.spawn(_stop_then, before, number, frame)

    signal.signal(signal.SIGTERM, term)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _stop_then(before: Any, number: int, frame: Any) -> None:
    try:
        _stop(None)
    finally:
        if callable(before):
            before(number, frame)


def _stop(_: Any) -> None:
    for sessions in _RUNNING:
        sessions.stop()


def _exit(_: Any, worker: Any) -> None:
    with contextlib.suppress(Exception):
        _stop(worker)


def _logger_base() -> Any:
    from gunicorn.glogging import Logger

    return Logger


class Quiet(_logger_base()):  # type: ignore[misc]
    """gunicorn's own lines through our logging; SIGUSR1 is not for reopening files."""

    def setup(self, cfg: Any) -> None:
        setup.configure(os.environ.get("SESSIOND_LOG_FORMAT") or "console")
        self.loglevel = 30
        self.error_log.setLevel(30)
        self.error_log.propagate = True
        self.access_log.disabled = True

    def reopen_files(self) -> None:
        return None


if __name__ == "__main__":
    sys.exit(main())
