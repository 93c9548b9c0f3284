"""All settings: the list has every setting that the code reads, and the documents have every listed setting."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sessiond_ops import settings
from support.servers import SERVICES

ROOT = SERVICES.parent
NAME = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*")
NO_SETTINGS = {"USER", "CONTENT_LENGTH"}
"""Variables of the system and of WSGI."""
READERS = {"text", "seconds", "money", "count", "flag", "port", "words", "one_of", "log_format", "url", "path",
           "optional_path", "secret", "read", "get"}  # fmt: skip


def read_in_code() -> Iterator[tuple[str, Path]]:
    """Return the literal names in `env.port("NAME", …)`, `os.environ.get("NAME")` and `os.environ["NAME"]`."""
    for path in SERVICES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                found = node.args[0] if node.func.attr in READERS else None
                named = ast.unparse(node.func.value).endswith("env" if node.func.attr != "get" else "environ")
            elif isinstance(node, ast.Subscript):
                found, named = node.slice, ast.unparse(node.value).endswith("environ")
            else:
                continue
            name = found.value if isinstance(found, ast.Constant) else None
            if named and isinstance(name, str) and NAME.fullmatch(name):
                yield name, path


def listed() -> set[str]:
    return {one.name for found in settings.programs().values() for one in found}


def test_every_setting_that_the_code_reads_is_listed() -> None:
    found = dict(read_in_code())
    assert len(found) > 60
    assert {name: path for name, path in found.items() if name not in listed() | NO_SETTINGS} == {}


def test_every_listed_setting_is_documented() -> None:
    text = "\n".join(path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
    written = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", text))
    assert listed() - written == set()


def test_every_setting_has_a_description_of_one_line() -> None:
    for program, found in settings.programs().items():
        assert found, program
        for one in found:
            assert NAME.fullmatch(one.name)
            assert one.what.strip()
            assert not set("|\n`") & {*one.what, *one.default}, one


def test_the_command_prints_the_list_of_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert settings.main() == 0
    printed = capsys.readouterr().out
    assert "## sessiond\n\n| Variable | Default | Meaning |\n| --- | --- | --- |\n" in printed
    assert "| `SESSIOND_PORT` | `8420` | port on which sessiond listens |\n" in printed
    assert printed.count("\n| `") == sum(len(found) for found in settings.programs().values())


def test_the_list_is_the_same_each_time() -> None:
    assert settings.programs() == settings.programs()
