"""Golden files: masked facts about the services, as text that a test compares byte for byte.

Each name in a `Golden` becomes one file. `RECORD_GOLDENS=1` writes the files instead of comparing them.
"""

import difflib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RECORD = os.environ.get("RECORD_GOLDENS") == "1"


LINE_WIDTH = 160


def render(value: Any, indent: int = 0) -> str:
    """Return JSON with sorted members. A value that fits into one line stays on one line."""
    flat = json.dumps(value, sort_keys=True, ensure_ascii=False)
    pad = " " * (indent + 1)
    if not isinstance(value, (dict, list)) or not value or len(flat) + indent <= LINE_WIDTH:
        return flat
    if isinstance(value, dict):
        parts = [f"{json.dumps(k, ensure_ascii=False)}: {render(value[k], indent + 1)}" for k in sorted(value)]
        return "{\n" + ",\n".join(pad + part for part in parts) + "\n" + " " * indent + "}"
    return "[\n" + ",\n".join(pad + render(one, indent + 1) for one in value) + "\n" + " " * indent + "]"


class Golden:
    """The golden files of one test, in their own folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = {}

    def put(self, name: str, facts: Any) -> None:
        """Add the facts of one file."""
        assert name not in self.facts, name
        self.facts[name] = facts

    def check(self) -> None:
        """Compare all files, or write them. A stored file without recorded facts is a difference too."""
        texts = {f"{name}.json": render(facts) + "\n" for name, facts in self.facts.items()}
        stored = {file.name: file.read_text() for file in sorted(self.folder.glob("*.json"))}
        if RECORD:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in stored.keys() - texts.keys():
                (self.folder / name).unlink()
            for name, text in texts.items():
                (self.folder / name).write_text(text)
            return
        diffs = [
            "\n".join(_diff(f"{self.folder.name}/{name}", stored.get(name, ""), texts.get(name, "")))
            for name in sorted(stored.keys() | texts.keys())
            if stored.get(name) != texts.get(name)
        ]
        if diffs:
            text = "\n\n".join(diffs)
            raise AssertionError(
                f"the behaviour differs from the golden files (RECORD_GOLDENS=1 records them again)\n{text[:20_000]}"
            )


def _diff(name: str, before: str, after: str) -> Iterator[str]:
    return difflib.unified_diff(
        before.splitlines(), after.splitlines(), f"recorded {name}", f"now {name}", "", "", 2, ""
    )
