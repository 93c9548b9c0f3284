"""`sessionctl verify` as an operator runs it, with the ledger of a session, a saved ledger and malformed input."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sessiond_ops import sessionctl
from support.lock.histories import random_history
from support.lock.ledgers import long_ledger
from support.servers import Sessiond, scripted_env
from support.size import FULL

SESSION = "octo/hello"
ENV = {k: v for k, v in os.environ.items() if not k.startswith(("SESSIOND_", "ANTHROPIC_", "CLAUDE", "REDIS_URL"))}
Done = subprocess.CompletedProcess[bytes]


def verify(*words: str, given: bytes = b"", **env: str) -> Done:
    command = [sys.executable, "-m", "sessiond_ops.sessionctl", "verify", *words]
    full = {**ENV, **env}
    return subprocess.run(command, env=full, input=given, capture_output=True, timeout=120)


@pytest.fixture
def here(capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path) -> Callable[..., Done]:
    """Run the command within this process: here(words…, given=content of the file to read)."""

    def run(*words: str, given: bytes | None = None) -> Done:
        file = tmp_path / "given.jsonl"
        if given is not None:
            file.write_bytes(given)
            words = (*words, "--file", str(file))
        try:
            status = sessionctl.main(["verify", *words])
        except SystemExit as exit:
            status = int(exit.code or 0)
        out, err = capfdbinary.readouterr()
        return Done(words, status, out, err)

    return run


def lines(entries: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)


def test_the_ledger_of_a_session_and_its_saved_copy_are_verified_alike(
    sessiond: Callable[..., Sessiond], tmp_path: Path
) -> None:
    service = sessiond(scripted_env())
    where = {"SESSIOND_URL": service.url, "SESSIOND_KEY": service.keys["viewer"]}
    assert verify(SESSION, **where).stdout == b"0 entries, 0 handoffs, 0 inversions, 0 misorders, 0 preemptions\n"
    for key in ("one", "two"):
        with service.client().lease(SESSION, key=key) as lease:
            lease.turn("#say x").result()
    command = [sys.executable, "-m", "sessiond_ops.sessionctl", "ledger", SESSION, "--json"]
    full = {**ENV, **where}
    saved = subprocess.run(command, env=full, capture_output=True, timeout=60, check=True).stdout
    (tmp_path / "saved.jsonl").write_bytes(saved)
    entries = [json.loads(line) for line in saved.splitlines()]
    closing = f"{len(entries)} entries, 2 handoffs, 0 inversions, 0 misorders, 0 preemptions\n".encode()
    ways = [
        verify(SESSION, **where),
        verify("--file", str(tmp_path / "saved.jsonl")),
        verify("--file", "-", given=saved),
    ]
    assert [(done.returncode, done.stdout, done.stderr) for done in ways] == [(0, closing, b"")] * 3
    first, second = (e for e in entries if e["event"] == "granted")
    second["fence"] = first["fence"]
    done = verify("--file", "-", given=lines(entries))
    text = f"{second['id']} fence_grows {first['fence']} follows {first['fence']}\n".encode()
    assert done.stdout.startswith(text) and done.stdout.endswith(closing)
    assert (done.returncode, done.stderr) == (1, b"")
    as_json = [json.loads(line) for line in verify("--file", "-", "--json", given=lines(entries)).stdout.splitlines()]
    assert (as_json[0]["entry"], as_json[0]["invariant"]) == (second["id"], "fence_grows")
    assert as_json[-1] == {
        "entries": len(entries), "handoffs": 2, "inversions": 0, "misorders": 0, "preemptions": 0,
    }  # fmt: skip


HONEST = random_history(1, 60)
WRONG = [{**e, "fence": 7} if e["event"] == "granted" else e for e in HONEST]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (lines(HONEST[:9]) + b'{"id": "1-9", "eve\n', b"line 10: "),
        (lines(HONEST[:9]) + b"\xff\xfe\n", b"line 10: "),
        (lines(HONEST[:9]) + b"[" * 5000 + b"\n", b"line 10: "),
        (lines(HONEST[:9]) + b"[]\n", b"line 10: "),
        (
            lines([*HONEST[:9], {n: HONEST[9][n] for n in ("id", "epoch", "version")} | {"event": "granted"}]),
            b"line 10: granted lacks ticket",
        ),
        (lines([*HONEST[:9], {k: v for k, v in HONEST[9].items() if k != "version"}]), b"lacks version"),
        (lines([*HONEST[:9], {**HONEST[9], "id": "x"}]), b"line 10: "),
        (lines(HONEST[2:5]), b"none of 3 entries is a snapshot"),
    ],
)
def test_a_malformed_ledger_gives_one_line_and_exit_2(here: Callable[..., Done], given: bytes, expected: bytes) -> None:
    done = here(given=given)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
    assert expected in done.stderr and b"Traceback" not in done.stderr


def test_violations_before_a_malformed_line_are_printed(here: Callable[..., Done]) -> None:
    done = here(given=lines(WRONG) + b"{\n")
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b" fence_grows 7 follows 0\n" in done.stdout


@pytest.mark.parametrize(
    "words", [(), (SESSION, "--file", "-"), ("noslash",), ("--file", "/none"), ("--file", "/"), (SESSION, "--url", "x")]
)
def test_bad_input_gives_one_line_and_exit_2(here: Callable[..., Done], words: tuple[str, ...]) -> None:
    done = here(*words)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1), done


def test_an_unreachable_server_is_not_a_violation() -> None:
    done = verify(SESSION, SESSIOND_URL="http://127.0.0.1:1")
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)


def test_a_violation_is_one_line_whatever_the_tickets_name(here: Callable[..., Done]) -> None:
    entries = [*HONEST, {**HONEST[-1], "version": HONEST[-1]["version"] + 1, "id": "99-0", "event": "absent"}]
    entries[-1]["ticket"] = "a\nb\x1b[2J"
    done = here(given=lines(entries))
    assert (done.returncode, done.stdout.count(b"\n")) == (1, 2)
    assert rb"99-0 no_place_lost a\nb\x1b[2J is absent but has no place" in done.stdout


def test_memory_does_not_grow_with_the_length_of_the_ledger(tmp_path: Path, figures: Callable[[str], None]) -> None:
    """The peak memory of the command is compared with its peak for an empty ledger."""
    queued, grants = (5000, 10_000) if FULL else (500, 4000)
    (tmp_path / "long.jsonl").write_bytes(lines(long_ledger(queued, grants)))
    script = (
        "import sys; from sessiond_ops.sessionctl import main; done = main(sys.argv[1:]);"
        "print(*[line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')]); sys.exit(done)"
    )
    took = []
    for path in ("/dev/null", str(tmp_path / "long.jsonl")):
        command = [sys.executable, "-c", script, "verify", "--file", path]
        done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=200, check=True)
        counts, peak = done.stdout.splitlines()
        took.append(int(peak) / 1024)
    figures(f"{counts}, {queued} queued: {took[1] - took[0]:.1f} MB over the {took[0]:.0f} MB for an empty ledger")
    # A place takes half a kB. Kept entries would take one kB each.
    assert took[1] - took[0] < 2 + queued / 500
