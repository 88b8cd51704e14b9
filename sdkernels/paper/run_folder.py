"""A recipe's run folder: settings first, finished parts as they come, figure, tables and report last."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class RunFolder:
    """A folder that one recipe with one set of settings writes; the same run again continues where it stopped.

    Args:
        path: made if it is not there.
        settings: everything that the numbers depend on.
        fresh: remove an earlier run in this folder first.

    Raises:
        ValueError: the folder holds a run with other settings, or something that is no run.
    """

    SETTINGS = "settings.json"

    def __init__(self, path: Path, settings: Mapping[str, Any], *, fresh: bool = False) -> None:
        self.path = path
        recorded = path / self.SETTINGS
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file; give a folder by --out")
        if path.is_dir() and any(path.iterdir()) and not recorded.is_file():
            raise ValueError(f"{path} is not empty and holds no run of sdkernels; give another folder by --out")
        if fresh and recorded.is_file():
            shutil.rmtree(path)
        path.mkdir(parents=True, exist_ok=True)
        plain = json.loads(json.dumps(settings))
        if recorded.is_file():
            before = json.loads(recorded.read_text())
            if before != plain:
                changed = sorted(key for key in {*before, *plain} if before.get(key) != plain.get(key))
                raise ValueError(
                    f"{path} holds a run with other settings ({', '.join(changed)} differ); give another folder by "
                    "--out, or --fresh to throw that run away"
                )
        else:
            self.write_json(self.SETTINGS, plain)

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file; a crash never leaves half of it."""
        self.write(name, lambda partial: partial.write_text(json.dumps(content, indent=2) + "\n"))

    def read_json(self, name: str) -> Any:
        """Read a JSON file, or None if it is not there."""
        path = self.path / name
        return json.loads(path.read_text()) if path.is_file() else None

    def write(self, name: str, save: Any) -> None:
        """Call ``save(path)`` on a temporary name, then give the file its own name."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{os.getpid()}.{target.name}")
        save(partial)
        partial.replace(target)
