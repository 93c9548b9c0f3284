"""A command names the extra that is not installed. A broken module of the project shows its own error."""

import sys
from pathlib import Path

import pytest

from sessiond_common.extras import ExtraMissing, import_with_extra


def test_a_module_that_imports_is_returned() -> None:
    assert import_with_extra("sessiond_common.extras", "server") is sys.modules["sessiond_common.extras"]


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "needs_absent.py").write_text("import absent_package.part\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ExtraMissing) as caught:
        import_with_extra("needs_absent", "services")
    assert str(caught.value) == "needs the extra \"services\": pip install 'sessiond[services]'"


def test_a_missing_module_of_the_project_is_not_reported_as_a_missing_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"sessiond_common\.absent"):
        import_with_extra("sessiond_common.absent", "server")
