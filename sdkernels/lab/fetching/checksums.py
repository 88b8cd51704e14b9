"""Does a file have the size and the checksums that it should have?"""

import hashlib
from pathlib import Path

_CHUNK = 1 << 20


def digest(path: Path, algorithm: str = "sha256") -> str:
    """The checksum of a file's bytes, in hexadecimal."""
    hashed = hashlib.new(algorithm, usedforsecurity=False)  # md5 is what publishers publish
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            hashed.update(chunk)
    return hashed.hexdigest()


def mismatch(path: Path, size: int | None, checksums: tuple[str, ...]) -> str | None:
    """What is wrong with a file, or None.

    Args:
        path: an existing file.
        size: in bytes; None: any but zero.
        checksums: all must agree, each ``"md5:..."``, ``"sha1:..."`` or ``"sha256:..."``.

    Returns:
        Words that name the size or checksum found and the one expected; None if all agree.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "file"
        >>> _ = path.write_bytes(b"abc")
        >>> mismatch(path, 3, ("md5:900150983cd24fb0d6963f7d28e17f72",))
        >>> mismatch(path, 4, ())
        '3 bytes, not 4'
    """
    found = path.stat().st_size
    if found == 0 or (size is not None and found != size):
        return f"{found:,} bytes, not {size:,}" if size is not None else "it is empty"
    for checksum in checksums:
        algorithm, _, published = checksum.partition(":")
        computed = digest(path, algorithm)
        if computed != published:
            return f"{algorithm} {computed}, not {published}"
    return None
