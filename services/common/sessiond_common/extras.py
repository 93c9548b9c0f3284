"""The package's extras: which one a command needs, and the message when it is not installed."""

import importlib
from types import ModuleType


class ExtraMissing(Exception):
    """A package of an extra is not installed. The text names the extra and the command that installs it."""

    def __init__(self, extra: str) -> None:
        super().__init__(f"needs the extra \"{extra}\": pip install 'sessiond[{extra}]'")


def import_with_extra(module: str, extra: str) -> ModuleType:
    """Import one of the project's modules, whose third-party packages belong to `extra`.

    Raises:
        ExtraMissing: A third-party package is not installed.
        ImportError: The project's own code does not import.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("sessiond"):
            raise
        raise ExtraMissing(extra) from error
