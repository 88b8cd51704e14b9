"""A recipe's run folder: settings first, finished parts as they come, figure, tables and report last."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

FORMAT = "sdkernels.run/1"


class RunFolder:
    """A folder that one recipe with one set of settings writes; the same run again continues where it stopped.

    Args:
        path: made if it is not there.
        settings: everything that the numbers depend on.
        files: patterns of the files that the recipe writes; ``fresh`` removes these and nothing else.
        fresh: remove an earlier run in this folder first.

    Raises:
        ValueError: the folder holds a run with other settings, or something that is no run.
    """

    MARKER = "sdkernels-run.json"

    def __init__(self, path: Path, settings: Mapping[str, Any], files: Sequence[str], *, fresh: bool = False) -> None:
        self.path = path
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file; give a folder by --out")
        marker = {"format": FORMAT, "settings": json.loads(json.dumps(settings))}
        before = self._marker()
        if before is None and path.is_dir() and any(path.iterdir()):
            raise ValueError(f"{path} is not empty and holds no run of sdkernels; give another folder by --out")
        if before is not None and fresh:
            self._remove(files)
            before = None
        path.mkdir(parents=True, exist_ok=True)
        if before is None:
            self.write_json(self.MARKER, marker)
        elif before != marker:
            old, new = before["settings"], marker["settings"]
            changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
            raise ValueError(
                f"{path} holds a run with other settings ({', '.join(changed)} differ); give another folder by --out, "
                "or --fresh to throw that run away"
            )

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file; a crash never leaves half of it."""
        self.write(name, lambda partial: partial.write_text(json.dumps(content, indent=2) + "\n"))

    def read_json(self, name: str) -> Any:
        """Read a JSON file, or None if it is not there."""
        path = self.path / name
        return json.loads(path.read_text()) if path.is_file() else None

    def write(self, name: str, save: Callable[[Path], Any]) -> None:
        """Call ``save(path)`` on a temporary name, then give the file its own name."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{os.getpid()}.{target.name}")
        save(partial)
        partial.replace(target)

    def _marker(self) -> Any:
        """What an earlier run left, or None if this is no folder of a run."""
        try:
            marker = self.read_json(self.MARKER)
        except ValueError:
            return None
        return marker if isinstance(marker, dict) and marker.get("format") == FORMAT else None

    def _remove(self, files: Sequence[str]) -> None:
        """The recipe's own files, and folders that are empty then."""
        written = [path for pattern in (*files, self.MARKER) for path in self.path.glob(pattern) if path.is_file()]
        for path in written:
            path.unlink()
        for folder in {path.parent for path in written} - {self.path}:
            if not any(folder.iterdir()):
                folder.rmdir()
