"""Puts services/ on the import path of the .venv that runs this, with its console scripts.

Instead of `pip install -e .`, which would fetch a build backend over the network.
"""

import os
import sys
import sysconfig
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """#!/bin/sh
exec '{python}' -c 'import sys; from {module} import {function}; sys.exit({function}())' "$@"
"""


def main() -> None:
    """Writes sessiond.pth into site-packages and one script for each entry of project.scripts."""
    if sys.prefix == sys.base_prefix:
        sys.exit("run this with .venv/bin/python")
    Path(sysconfig.get_path("purelib"), "sessiond.pth").write_text(f"{ROOT / 'services'}\n")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, target in project["scripts"].items():
        module, function = target.split(":")
        script = Path(sys.executable).with_name(name)
        script.write_text(SCRIPT.format(python=sys.executable, module=module, function=function))
        os.chmod(script, 0o755)


if __name__ == "__main__":
    main()
