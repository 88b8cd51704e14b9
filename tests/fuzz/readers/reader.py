"""One reader of files: valid files to start from, how it reads one, and changes that get past its checksums."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.readers.mutations import changed_bytes

CASES = Path(__file__).parent / "cases"


@dataclass(frozen=True)
class Reader:
    """A way in which the package reads files.

    Attributes:
        name: of the reader, and of the folder of its kept cases.
        file: what the file is called that is read.
        seeds: valid files.
        read: reads the file, raises what the reader raises, and ``AssertionError`` where what it gave is wrong.
        change: one change of a file that bytes alone would seldom make; None: bytes alone.
        silent: the reader takes a damaged file for none, and so never raises.
    """

    name: str
    file: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[Path], None]
    change: Callable[[bytes, random.Random], bytes] | None = None
    silent: bool = False

    def changed(self, content: bytes, draw: random.Random) -> bytes:
        """A few changes, of structure or of bytes."""
        for _ in range(draw.choice((1, 1, 1, 2, 3, 5))):
            if self.change is not None and draw.random() < 0.7:
                content = self.change(content, draw)
            else:
                content = changed_bytes(content, draw)
        return content

    def cases(self) -> list[Path]:
        """Files that once did harm."""
        return sorted((CASES / self.name).glob("*"))
