"""Where a data set's files are below the folder that a user gives."""

from collections.abc import Sequence
from pathlib import Path


def find_folder(data_dir: Path, folders: Sequence[str], files: Sequence[str], hint: str) -> Path:
    """The first of ``data_dir/FOLDER`` that holds any of ``files``.

    One file is enough: the reader that then misses another names it.

    Args:
        data_dir: given by the user.
        folders: where to look, in this order; ``""`` is ``data_dir`` itself.
        files: names.
        hint: where to get them; ends every error.

    Raises:
        FileNotFoundError: ``data_dir`` is no folder, or no file is there; says which were looked for, and where.
    """
    if not data_dir.is_dir():
        raise FileNotFoundError(f"{data_dir} is no folder. {hint}")
    for folder in folders:
        if any((data_dir / folder / file).is_file() for file in files):
            return data_dir / folder
    places = ", ".join(str(data_dir / folder) for folder in folders)
    raise FileNotFoundError(f"{', '.join(files)}: none is in {places}. {hint}")


def read_whole(path: Path, hint: str) -> bytes:
    """The bytes of a file.

    Raises:
        FileNotFoundError: it is missing; says where to get it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. {hint}")
    return path.read_bytes()
