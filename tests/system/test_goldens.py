"""Compare what the services show to the outside with the golden files in `goldens/`.

The files cover HTTP answers, server-sent events, ledger entries, Redis records, metrics, log fields, commands and
environment variables. `RECORD_GOLDENS=1 pytest tests/system/test_goldens.py` records them again.
"""

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from sessiond import problems as sessiond_problems
from sessiond.http import openapi
from sessiond_common.env import SettingsError
from sessiond_webhook.ingress import problems as webhook_problems
from support.goldens.caller_scenes import CallerServices, answer_comments, run_tasks
from support.goldens.commands import (
    COMMANDS_WITH_HELP,
    FLAG,
    CommandRecorder,
    record_service_commands,
    record_session_commands,
    record_task_and_send_commands,
    run_sessionctl,
)
from support.goldens.environment import PROCESS_ENVIRON_READERS, SETTINGS_READERS, RecordingEnviron, without_sentences
from support.goldens.exchanges import Http, headers_of
from support.goldens.files import Golden
from support.goldens.lease_scenes import (
    cancel_turns,
    disconnect_waiter,
    expire_lease,
    expire_tickets,
    fail_turns,
    force_release,
    lose_lease_three_times,
    pass_over_absent_head,
    preempt_worker,
    reach_hold_limit,
    release_after_turns,
    restart_agent,
    stop_background_task,
    withdraw_tickets,
)
from support.goldens.mask import Mask
from support.goldens.records import Records, log_lines, log_shapes, masked_ledger, metrics_of
from support.goldens.service_scenes import (
    call_other_instance,
    fail_agent_start,
    fill_board,
    kill_and_restart,
    lose_redis,
    read_board,
    read_broken_record,
    refuse_requests,
    stop_service,
)
from support.goldens.services import LONG_TIMES, check_problem_types, run_concurrently
from support.goldens.sessiond_recorder import SERVICE_ENV, IdleStreams, RecordedSessiond
from support.goldens.webhook_scenes import GAUGES, REPOSITORY, DeliverySender, send_deliveries, send_refused_deliveries
from support.servers import Redis, Sessiond, Webhook, scripted_env
from support.webhook import payloads

GOLDENS = Path(__file__).parent / "goldens"


SCENES: tuple[Callable[[RecordedSessiond], None], ...] = (
    release_after_turns, cancel_turns, fail_turns, preempt_worker, force_release, withdraw_tickets, restart_agent,
    stop_background_task, disconnect_waiter, refuse_requests, read_board, fill_board,
)  # fmt: skip


UNREACHED_PROBLEMS: Mapping[str, str] = {}
"""Problem types that no scene causes, each with the reason."""

REACHED_VALUES = {
    ("turn-closed", "outcome"): "completed cancelled failed lost",
    ("ended", "reason"): "released unclaimed preempted expired hold-limit forced withdrawn",
    ("ticket-ended", "reason"): "released withdrawn hold-limit forced lost-thrice too-old",
}
"""The values that the ledgers of all scenes together contain."""

STABLE_SAMPLES = re.compile(
    r"sessiond_(handoffs|inversions|misorders|violations|passed_over|lapsed|preemptions|leases_ended|drains|recoveries"
    r"|turns|tokens|cost_usd)_total"
)
"""Metrics whose values are the same in every run."""


def has_stable_value(name: str, labels: Mapping[str, str]) -> bool:
    return bool(STABLE_SAMPLES.fullmatch(name))


def test_sessiond_equals_its_golden_files(redis_server: Redis, tmp_path: Path) -> None:
    with ExitStack() as stack:
        _run_sessiond_scenes(Golden(GOLDENS / "sessiond"), redis_server, tmp_path, stack)


def _run_sessiond_scenes(golden: Golden, redis_server: Redis, place: Path, stack: ExitStack) -> None:
    servers = stack.enter_context(ExitStack())
    started: list[Sessiond] = []
    stack.callback(lambda: run_concurrently(*(server.close for server in started)))

    def start(name: str, *faults: str, redis: Redis | None = None, **times: float) -> RecordedSessiond:
        """Start a sessiond. Each has its own Redis, because an instance takes over every session without an owner."""
        if redis is None:
            redis = Redis()
            servers.callback(redis.close)
        env = {**scripted_env(*faults, **{**LONG_TIMES, **times}), **SERVICE_ENV, "SESSIOND_LOG_FORMAT": "json"}
        env["SESSIOND_MAX_AGENTS"] = "20"
        server = Sessiond(redis.url, place / name, env)
        started.append(server)
        common = headers_of(Http(server.url, server.keys, Mask()).ask("GET", "/nowhere"))
        without = {name: value for name, value in common.items() if name != "Content-Type"}
        return RecordedSessiond(server, Records(redis.url), golden, without)

    stopped_redis = Redis()
    servers.callback(stopped_redis.close)
    default, expiring, short_hold, short_claim, absent, crashing, stopped = run_concurrently(
        lambda: start("default", redis=redis_server),
        lambda: start("expiring", lease_ttl=0.5, head_wait=0.3),
        lambda: start("short_hold", max_hold=5, drain_deadline=0.3),
        lambda: start("short_claim", claim_window=0.3),
        lambda: start("absent", absence=0.4, ticket_ttl=4, poll_grace=0.2),
        lambda: start("crashing", "exit-start=3"),
        lambda: start("stopped", redis=stopped_redis, owner_ttl=6, owner_renew=0.5, owner_doubt=4),
    )
    golden.put("every-answer.headers", default.common)
    beats = IdleStreams(default)
    run_concurrently(
        lambda: [scene(default) for scene in SCENES],
        lambda: [scene(expiring) for scene in (expire_lease, pass_over_absent_head)],
        lambda: reach_hold_limit(short_hold),
        lambda: lose_lease_three_times(short_claim),
        lambda: expire_tickets(absent),
        lambda: fail_agent_start(crashing),
        lambda: [
            kill_and_restart(stopped),
            read_broken_record(stopped),
            lose_redis(stopped, stopped_redis),
            stop_service(stopped),
        ],
    )
    call_other_instance(default, lambda: start("other", redis=redis_server))
    beats.end()
    text = Http(default.server.url, {}, Mask()).ask("GET", "/metrics", role=None).data.decode()
    golden.put("metrics", metrics_of(text, has_stable_value))
    golden.put("logs", log_shapes(line for server in started for line in log_lines(server.log_bytes().decode())))
    check_problem_types(golden, sessiond_problems.KINDS, UNREACHED_PROBLEMS)
    entries = [e for name, facts in golden.facts.items() if name.endswith(".ledger") for e in facts]
    for (event, member), values in REACHED_VALUES.items():
        assert {e[member] for e in entries if e["event"] == event} == set(values.split()), (event, member)
    golden.check()


def test_webhook_equals_its_golden_files(redis_server: Redis, tmp_path: Path) -> None:
    golden, records = Golden(GOLDENS / "webhook"), Records(redis_server.url)
    with ExitStack() as stack:
        service = Sessiond(redis_server.url, tmp_path / "sessiond", scripted_env(**LONG_TIMES))
        stack.callback(service.close)
        env = {
            "SESSIOND_URL": service.url, "SESSIOND_KEY": service.keys["handler"], "WEBHOOK_PROCESSES": "1",
            "WEBHOOK_LOG_FORMAT": "json", "WEBHOOK_ARRIVAL_SECONDS": "1", "WEBHOOK_TICKET_SECONDS": "30",
            "WEBHOOK_BYTES_IN_FLIGHT": str(4 * 2**20),
        }  # fmt: skip
        webhook = Webhook(redis_server.url, tmp_path / "webhook", env)
        stack.callback(webhook.close)
        mask = Mask()
        send = DeliverySender(webhook, mask)
        send_deliveries(send)
        golden.put("every-answer.headers", send.common)
        golden.put("deliveries.http", send.facts)
        golden.put("deliveries.ledger", masked_ledger(mask, records.ledger(REPOSITORY)))
        golden.put("deliveries.redis", records.dump(mask, "webhook:*", "worker:*", "rq:job:*", "rq:queue*"))
        text = send.http.ask("GET", "/metrics", role=None)
        golden.put("metrics", metrics_of(text.data.decode(), lambda name, labels: "_total" in name or name in GAUGES))
        send = DeliverySender(webhook, Mask())
        send_refused_deliveries(send, records, redis_server)
        golden.put("refused.http", send.facts)
        golden.put("logs", log_shapes(log_lines(webhook.log_text(0))))
    check_problem_types(golden, webhook_problems.KINDS, {})
    golden.check()


def test_handler_poster_and_worker_equal_their_golden_files(redis_server: Redis, tmp_path: Path) -> None:
    golden = Golden(GOLDENS / "callers")
    with ExitStack() as stack:
        services = CallerServices(redis_server, tmp_path, stack)
        mask = Mask(**{"the-directory": str(tmp_path), "the-github": services.github.url})
        answer_comments(services, golden, mask)
        run_tasks(services, golden, mask)
        for name in ("handler", "worker"):
            golden.put(f"{name}.metrics", services.metrics(name))
        for name in ("handler", "poster", "worker"):
            lines = [line for n, p in services.processes.items() if n.startswith(name) for line in log_lines(p.log())]
            golden.put(f"{name}.logs", log_shapes(line for line in lines if "rq" not in str(line.get("logger"))))
    golden.check()


def test_commands_equal_their_golden_files(redis_server: Redis, tmp_path: Path) -> None:
    golden = Golden(GOLDENS / "commands")
    with ExitStack() as stack:
        service = Sessiond(redis_server.url, tmp_path / "sessiond", scripted_env(**LONG_TIMES))
        stack.callback(service.close)
        webhook = Webhook(redis_server.url, tmp_path / "webhook", {"WEBHOOK_PROCESSES": "1"})
        stack.callback(webhook.close)
        mask = Mask(**{"the-directory": str(tmp_path), "the-redis": redis_server.url, "the-data": str(payloads.DATA)})
        record_session_commands(golden, mask, service, tmp_path)
        record_task_and_send_commands(golden, mask, redis_server, webhook, tmp_path)
    usages = CommandRecorder(Mask())
    for words in COMMANDS_WITH_HELP:
        status, out, _ = run_sessionctl(*words, "--help")
        usage = out.partition("\n\n")[0]
        flags = sorted(set(FLAG.findall(out.partition("options:")[2])))
        usages.facts.append(
            {"command": " ".join(words), "status": status, "usage": " ".join(usage.split()), "options": flags}
        )
    golden.put("usage", usages.facts)
    record_service_commands(golden, tmp_path)
    golden.check()


def test_environment_variables_equal_their_golden_files(monkeypatch: pytest.MonkeyPatch) -> None:
    golden, found = Golden(GOLDENS / "environment"), {}
    for name, (reader, environs) in SETTINGS_READERS.items():
        names: set[str] = set()
        for environ in environs:
            seen = RecordingEnviron(**environ)
            with contextlib.suppress(SettingsError):
                reader(seen)
            names |= seen.names
        found[name] = sorted(names)
    for name, work in PROCESS_ENVIRON_READERS.items():
        seen = RecordingEnviron(REDIS_URL="redis://127.0.0.1:1/0")
        with monkeypatch.context() as patched:
            patched.setattr(os, "environ", seen)
            work()
        found[name] = sorted(name for name in seen.names if not name.startswith(("LANG", "LC_", "COLUMNS", "LINES")))
    for name in ("handler", "poster", "worker"):
        found[name] = sorted({*found[name], *found["metrics"]})
    golden.put("variables", found)
    golden.check()


def test_openapi_equals_its_golden_file() -> None:
    golden = Golden(GOLDENS / "openapi")
    golden.put("document", without_sentences(openapi.document()))
    golden.check()
