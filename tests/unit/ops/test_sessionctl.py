"""sessionctl imports a service's command only when it is called, and names the extra that is not installed."""

import importlib
import sys

import pytest

from sessiond_common.extras import ExtraMissing
from sessiond_ops import daemon, sessionctl

SERVICES = [command.name for command in sessionctl.SERVICE_COMMANDS]


@pytest.fixture
def without_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every module that needs an extra impossible to import."""

    def missing(module: str, extra: str) -> None:
        raise ExtraMissing(extra)

    monkeypatch.setattr(sessionctl, "import_with_extra", missing)
    monkeypatch.setattr(daemon, "import_with_extra", missing)


@pytest.mark.usefixtures("without_extra")
@pytest.mark.parametrize("words", [["--help"], ["status", "--help"], ["verify", "--help"]])
def test_other_commands_need_no_extra(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        sessionctl.main(words)
    assert caught.value.code == 0
    assert capfd.readouterr().out.startswith("usage: sessionctl")


@pytest.mark.usefixtures("without_extra")
@pytest.mark.parametrize("words", [["task"], ["task", "list"], ["send", "--help"], ["send", "-", "--event", "ping"]])
def test_a_service_command_names_its_extra(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert sessionctl.main(words) == 2
    out, err = capfd.readouterr()
    assert (out, err) == (
        "",
        f"sessionctl: {words[0]}: needs the extra \"services\": pip install 'sessiond[services]'\n",
    )


@pytest.mark.usefixtures("without_extra")
def test_the_daemon_names_its_extra(capfd: pytest.CaptureFixture[str]) -> None:
    assert daemon.main() == 2
    assert capfd.readouterr().err == "sessiond: needs the extra \"server\": pip install 'sessiond[server]'\n"


@pytest.mark.parametrize("command", sessionctl.SERVICE_COMMANDS, ids=SERVICES)
def test_the_help_of_a_service_command_equals_that_of_its_module(
    command: sessionctl.ServiceCommand, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of commands is printed without importing the module, so it has its own copy of the sentence."""
    monkeypatch.setattr(sys, "argv", ["sessionctl", command.name, "--help"])
    with pytest.raises(SystemExit):
        sessionctl.main()
    described = " ".join(capfd.readouterr().out.split())
    assert command.what in described or command.what.capitalize() in described
    assert importlib.import_module(command.module).add_commands
