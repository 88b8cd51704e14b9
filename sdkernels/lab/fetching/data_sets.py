"""Fetch a data set into the folder where its reader looks for it, and tell what is there already."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from sdkernels.lab.fetching.archives import extract
from sdkernels.lab.fetching.checksums import mismatch
from sdkernels.lab.fetching.download import NoAddressError, Patience, download
from sdkernels.lab.fetching.fetch_record import FetchRecord
from sdkernels.lab.fetching.folder_lock import alone_in
from sdkernels.lab.fetching.partial import FetchError, Partial, local_write
from sdkernels.lab.fetching.publishers import DATA_SETS, DataFile, DataSet, Download

__all__ = ["FetchError", "Fetched", "Patience", "fetch", "presence"]


@dataclass(frozen=True)
class Fetched:
    """A data set that is there.

    Attributes:
        name: of the data set.
        files: where its files are.
        downloaded: what was downloaded for it now, by file name; empty if all was there.
        unverified: files (names) that there is neither a published checksum nor a record for.
    """

    name: str
    files: tuple[Path, ...]
    downloaded: tuple[str, ...]
    unverified: tuple[str, ...]


def fetch(
    what: str | DataSet,
    data_dir: Path,
    *,
    mirror: str | None = None,
    patience: Patience | None = None,
    show_progress: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Fetched:
    """Make a data set be in ``data_dir``: verify what is there, download and unpack what is not.

    A stopped fetch continues where it was when it is called again. Files are given their names only when they are
    complete and verified. A file that is there and is not the published one is replaced, and ``say`` is told. Two
    processes may fetch the same set into the same folder; one waits for the other.

    Args:
        what: a name in ``publishers.DATA_SETS``, or a data set of your own.
        data_dir: the files come to ``data_dir/NAME``; made if it is not there.
        mirror: a base address to ask instead of the publishers; files are at ``MIRROR/NAME/FILE``. What is published
            of checksums holds for it as well.
        patience: with slow and failing servers.
        show_progress: bars with rate and time left, if standard error is a terminal.
        say: is told what happens, line by line.

    Returns:
        Where the files are, and what was downloaded.

    Raises:
        ValueError: an unknown name, or a mirror that is no http(s) address.
        FetchError: no address gave a file, the disk is full, the folder cannot be written, an archive is not as
            expected. What has arrived is kept.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "notes").mkdir()
        >>> _ = (folder / "notes" / "a.txt").write_text("abc")
        >>> checksum = "md5:900150983cd24fb0d6963f7d28e17f72"
        >>> notes = DataSet("notes", "My notes", "me", "mine", (DataFile("a.txt", 3, (checksum,)),), ())
        >>> fetch(notes, folder).downloaded  # all is there, and right
        ()
    """
    data_set = _named(what) if isinstance(what, str) else what
    if mirror is not None and urlsplit(mirror).scheme not in ("http", "https"):
        raise ValueError(f"the mirror {mirror!r} is no address: it has to start with http:// or https://")
    folder = data_dir / data_set.name
    there = _complete(data_set, folder)
    if there is not None:  # before anything is written: complete data may lie where nobody can write
        return _fetched(data_set, there, ())
    with local_write(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with alone_in(
            folder, lambda: say(f"{data_set.name}: another process is fetching into {folder}; waiting for it")
        ):
            there = _complete(data_set, folder)
            if there is not None:
                return _fetched(data_set, there, ())
            fetching = _Fetching(data_set, folder, mirror, patience or Patience(), show_progress, say)
            downloaded = fetching.any_way()
    there = _complete(data_set, folder)
    if there is None:
        raise FetchError(f"{data_set.name}: {folder} was changed while it was being fetched")
    return _fetched(data_set, there, downloaded)


def presence(data_set: DataSet, data_dir: Path) -> str:
    """What is in ``data_dir`` of a data set, by names and sizes alone: ``complete``, ``2 of 4 files``, ``nothing``."""
    folder = data_dir / data_set.name
    there = max(
        sum(path.is_file() and mismatch(path, file.size, ()) is None for path, file in layout)
        for layout in _layouts(data_set, folder)
    )
    parts = [Partial(folder / each.name).length for way in data_set.ways for each in way]
    if there == len(data_set.files):
        return "complete"
    said = f"{there} of {len(data_set.files)} files" if there else "nothing"
    return f"{said}, {sum(parts) / 1e6:.1f} MB of a download" if any(parts) else said


def _named(name: str) -> DataSet:
    if name not in DATA_SETS:
        raise ValueError(f"there is no data set {name!r} to fetch; there are {', '.join(DATA_SETS)}")
    return DATA_SETS[name]


@dataclass(frozen=True)
class _Fetching:
    data_set: DataSet
    folder: Path
    mirror: str | None
    patience: Patience
    show_progress: bool
    say: Callable[[str], None]

    def any_way(self) -> tuple[str, ...]:
        """Go the first way that leads to all files; the names of what was downloaded."""
        failures = []
        for way in self.data_set.ways:
            try:
                return tuple(name for each in way for name in self._one(each))
            except NoAddressError as failure:
                failures.append(str(failure))
        by_hand = " or ".join(" + ".join(each.name for each in way) for way in self.data_set.ways)
        raise NoAddressError(
            f"{self.data_set.name}: {'; '.join(failures)}. Run again later, give another address by --from, or put "
            f"{by_hand} into {self.folder} by hand and run again"
        )

    def _one(self, wanted: Download) -> list[str]:
        """Download (if it is not there) and unpack (if it is an archive)."""
        target = self.folder / wanted.name
        files = {file.name: file for file in self.data_set.files}
        if wanted.members:
            members = [files[name] for name in wanted.members.values()]
        else:
            members = [DataFile(wanted.name, wanted.size, wanted.checksums)]
        record = FetchRecord(self.folder)
        wrong = [_wrong(file, self.folder / file.name, record) for file in members]
        if not any(wrong):
            return []
        for file, why in zip(members, wrong, strict=True):
            if why and (self.folder / file.name).exists():
                self.say(
                    f"{self.data_set.name}: {file.name} is there but is not the published file ({why}); it is replaced"
                )
        source, names = "put there by hand", []
        if not (wanted.members and target.is_file() and mismatch(target, wanted.size, wanted.checksums) is None):
            self._room(wanted, target)
            source = download(
                self._addresses(wanted),
                target,
                size=wanted.size,
                checksums=wanted.checksums,
                patience=self.patience,
                show_progress=self.show_progress,
                say=self.say,
            )
            names = [wanted.name]
            if wanted.members:
                record.add(names, source, wanted.checksums)
        if not wanted.checksums:
            self.say(f"{self.data_set.name}: no published checksum for {wanted.name}; only its length was checked")
        if wanted.members:
            self._unpack(wanted, target, files)
        record.add([file.name for file in members], source, wanted.checksums)
        if wanted.members and wanted.name in record:
            target.unlink()  # it was downloaded, now or by a run that was stopped; an archive put there by hand stays
            record.drop(wanted.name)
        return names

    def _unpack(self, wanted: Download, archive: Path, files: dict[str, DataFile]) -> None:
        def wrong(path: str, unpacked: Path) -> str | None:
            file = files[wanted.members[path]]
            return mismatch(unpacked, file.size, file.checksums)

        targets = {path: self.folder / name for path, name in wanted.members.items()}
        extract(archive, targets, limit=wanted.unpacked_limit, wrong=wrong)

    def _addresses(self, wanted: Download) -> tuple[str, ...]:
        if self.mirror is None:
            return wanted.addresses
        return (f"{self.mirror.rstrip('/')}/{quote(self.data_set.name)}/{quote(wanted.name)}",)

    def _room(self, wanted: Download, target: Path) -> None:
        """Before a long download: will it fit?"""
        unpacked = sum(file.size or 0 for file in self.data_set.files) if wanted.members else 0
        needed = (wanted.size or 0) - Partial(target).length + unpacked
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise FetchError(
                f"{self.data_set.name}: {wanted.name} needs {needed / 1e6:,.1f} MB in {self.folder}, where "
                f"{free / 1e6:,.1f} MB are free"
            )


_Layout = tuple[tuple[Path, DataFile], ...]


def _layouts(data_set: DataSet, folder: Path) -> list[_Layout]:
    """The places where all files may be: side by side in the folder, or elsewhere below it."""
    others = zip(*(file.elsewhere for file in data_set.files), strict=False)
    names = [tuple(file.name for file in data_set.files), *others]
    return [tuple((folder / name, file) for name, file in zip(each, data_set.files, strict=True)) for each in names]


def _complete(data_set: DataSet, folder: Path) -> _Layout | None:
    """The first layout in which all files are there, and right as far as that can be told."""
    record = FetchRecord(folder)
    for layout in _layouts(data_set, folder):
        if not any(_wrong(file, path, record) for path, file in layout):
            return layout
    return None


def _wrong(file: DataFile, path: Path, record: FetchRecord) -> str | None:
    """Why a file has to be fetched, or None."""
    if not path.is_file():
        return "it is missing"
    of_this_path = path.parent == record.folder and path.name == file.name
    return mismatch(path, file.size, file.checksums or (record.checksums(file.name) if of_this_path else ()))


def _fetched(data_set: DataSet, layout: _Layout, downloaded: tuple[str, ...]) -> Fetched:
    paths = tuple(path for path, _ in layout)
    record = FetchRecord(paths[0].parent)
    unverified = tuple(file.name for path, file in layout if not file.checksums and not record.checksums(path.name))
    return Fetched(data_set.name, paths, downloaded, unverified)
