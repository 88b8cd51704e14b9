"""A recipe's run folder: what was asked for, and the figure, data, claims and report that came of it."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

FORMAT = "sdkernels.run/1"


def make_folder(path: Path) -> None:
    """Make a folder of results, and those above it, if it is not there.

    Raises:
        ValueError: it cannot be; says why.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "a file is there" if isinstance(error, FileExistsError) else error.strerror
        raise ValueError(f"{path}: no folder can be made there ({why}); give another path") from error


class RunFolder:
    """A folder that one recipe with one set of settings writes, and writes again.

    It is looked at at once, and made, or cleared, when the first file is written: a run that fails leaves it as it was.

    Args:
        path: need not be there.
        settings: everything that the numbers depend on.
        files: the files that the recipe writes; ``fresh`` removes these and nothing else.
        fresh: another run in this folder makes way.

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
        self._unwritten: Any = marker
        self._outdated = [*files, self.MARKER] if before is not None and fresh else []
        if before is not None and not fresh and before != marker:
            old, new = before["settings"], marker["settings"]
            changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
            raise ValueError(
                f"{path} holds a run with other settings ({', '.join(changed)} differ); give another folder by --out, "
                "or --fresh to throw that run away"
            )

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file; a crash never leaves half of it."""
        self.write(name, lambda partial: partial.write_text(json.dumps(content, indent=2) + "\n"))

    def write(self, name: str, save: Callable[[Path], Any]) -> None:
        """Call ``save(path)`` on a temporary name, then give the file its own name."""
        self.path.mkdir(parents=True, exist_ok=True)
        while self._outdated:
            (self.path / self._outdated.pop()).unlink(missing_ok=True)
        if self._unwritten is not None:
            marker, self._unwritten = self._unwritten, None
            self.write_json(self.MARKER, marker)
        target = self.path / name
        partial = target.with_name(f".{os.getpid()}.{target.name}")
        try:
            save(partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def _marker(self) -> Any:
        """What an earlier run left, or None if this is no folder of a run."""
        try:
            marker = json.loads((self.path / self.MARKER).read_text())
        except (OSError, ValueError, RecursionError):
            return None
        is_run = (
            isinstance(marker, dict) and marker.get("format") == FORMAT and isinstance(marker.get("settings"), dict)
        )
        return marker if is_run else None
