"""The shared gunicorn server: its options, its logger, and its reaction to SIGTERM."""

import logging
import signal
import threading
from collections.abc import Iterator

import gevent
import pytest

from sessiond_common.gunicorn_server import Server, quiet_logger, stop_on_sigterm
from sessiond_common.gunicorn_worker import Worker


@pytest.fixture
def sigterm() -> Iterator[list[str]]:
    """Return the list of recorded calls. Block SIGTERM, and restore its handler and the mask afterwards."""
    before, happened = signal.getsignal(signal.SIGTERM), list[str]()
    signal.signal(signal.SIGTERM, lambda number, frame: happened.append("gunicorn"))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    yield happened
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    signal.signal(signal.SIGTERM, before)


def test_the_options_are_the_shared_ones_plus_those_of_the_service() -> None:
    server = Server(lambda: "application", "json", {"workers": 3, "keepalive": 7, "proc_name": "example"})
    cfg = server.cfg
    assert (cfg.workers, cfg.keepalive, cfg.timeout, cfg.proc_name) == (3, 7, 60, "example")
    assert cfg.worker_class is Worker
    assert (cfg.http_parser, cfg.accesslog, cfg.control_socket_disable) == ("python", None, True)
    assert server.wsgi() == "application"


def test_the_logger_passes_warnings_on_and_opens_no_file() -> None:
    cfg = Server(lambda: None, "json", {}).cfg
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        logger = cfg.logger_class(cfg)
        assert cfg.logger_class.__name__ == quiet_logger("json").__name__
        assert (logger.error_log.level, logger.error_log.propagate) == (logging.WARNING, True)
        assert logger.access_log.disabled
        logger.reopen_files()
        assert logger.error_log.handlers == []
    finally:
        root.handlers[:], root.level = before, level


@pytest.mark.parametrize("fails", [False, True])
def test_sigterm_stops_the_service_and_then_exits_even_if_stopping_fails(sigterm: list[str], fails: bool) -> None:
    def stop() -> None:
        sigterm.append("stop")
        if fails:
            raise RuntimeError("Redis is away")

    signal.pthread_kill(
        threading.get_ident(), signal.SIGTERM
    )  # to this thread, because other threads do not block the signal
    assert sigterm == [], "a blocked SIGTERM stays pending"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gevent.get_hub(), "print_exception", lambda *_: None)
        stop_on_sigterm(stop)
        gevent.sleep(0)
    assert sigterm == ["stop", "gunicorn"]
