"""What was fetched into a folder, from where, and what it was compared with: ``.fetched.json``."""

import json
import os
from pathlib import Path
from typing import Any

from sdkernels.lab.fetching.checksums import digest

NAME = ".fetched.json"
_FORMAT = "sdkernels.fetched/1"


class FetchRecord:
    """A folder's record. By it, members of archives that have no published checksum can be verified later on.

    A record that cannot be read counts as none.

    Args:
        folder: of a data set.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, dict[str, Any]] = {}
        try:
            files = json.loads((folder / NAME).read_text())["files"]
            self._files = {name: entry for name, entry in files.items() if isinstance(entry["sha256"], str)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def checksums(self, name: str) -> tuple[str, ...]:
        """The checksum of a file when it came, if what it came from agreed with a published one then."""
        entry = self._files.get(name, {})
        return (f"sha256:{entry['sha256']}",) if entry.get("checked_by") else ()

    def add(self, names: list[str], source: str, checked_by: tuple[str, ...]) -> None:
        """Record files as they are now: where from, and the published checksums that were agreed with."""
        for name in names:
            found = digest(self.folder / name)
            self._files[name] = {"sha256": found, "from": source, "checked_by": list(checked_by)}
        self._write()

    def drop(self, name: str) -> None:
        """Forget a file."""
        if self._files.pop(name, None) is not None:
            self._write()

    def _write(self) -> None:
        temporary = self.folder / f"{NAME}.{os.getpid()}"
        temporary.write_text(json.dumps({"format": _FORMAT, "files": self._files}, indent=2) + "\n")
        temporary.replace(self.folder / NAME)
