"""The `sessiond` command: reads settings and keys, then serves HTTP with one gunicorn worker."""

import argparse
import contextlib
import faulthandler
import sys
from typing import Any

from sessiond.http.keys import Keys, KeysError
from sessiond.http.keys import read as read_keys
from sessiond.settings import Settings, SettingsError, from_env
from sessiond_common.log import setup


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Return 2, with one line on stderr, for invalid settings."""
    parser = argparse.ArgumentParser(
        prog="sessiond",
        description="Share one long-lived Claude Code conversation per repository, in strict order.",
    )
    parser.add_argument("--check", action="store_true", help="validate the settings and the keys file, then exit")
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
    from sessiond_common import gunicorn_server

    options = {
        "bind": f"{settings.host}:{settings.port}",
        "workers": 1,
        "worker_connections": 6000,
        "backlog": 4096,
        "keepalive": 120,
        "graceful_timeout": 12,
        "when_ready": lambda _: gunicorn_server.dump_stacks_on_usr1(),
        "post_worker_init": _after_init,
        "worker_int": lambda _: _stop(),
        "worker_exit": _on_exit,
        "proc_name": "sessiond",
    }
    faulthandler.enable()
    gunicorn_server.dump_stacks_on_usr1()
    gunicorn_server.hold_sigterm_in_new_workers()
    gunicorn_server.Server(lambda: _application(settings, keys), settings.log_format, options).run()


_RUNNING: list[Any] = []
"""The worker's registry of sessions, once it is built."""


def _application(settings: Settings, keys: Keys) -> Any:
    """Build the application. Call it in the worker, because these imports need gevent's patches."""
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
    from sessiond_common import gunicorn_server

    gunicorn_server.dump_stacks_on_usr1()
    # `_stop` has answered every caller before that. The master keeps its longer timeout.
    worker.cfg.set("graceful_timeout", 1)
    gunicorn_server.stop_on_sigterm(_stop)


def _stop() -> None:
    """Answer every waiting caller and release the sessions."""
    for sessions in _RUNNING:
        sessions.stop()


def _on_exit(_: Any, worker: Any) -> None:
    with contextlib.suppress(Exception):
        _stop()


if __name__ == "__main__":
    sys.exit(main())
