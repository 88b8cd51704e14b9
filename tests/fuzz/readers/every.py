"""All readers."""

from tests.fuzz.readers import (
    archives,
    checkpoints,
    cifar,
    idx,
    images,
    ledgers,
    pickles,
    results,
    run_folders,
    sweeps,
    texts,
)
from tests.fuzz.readers.reader import Reader

READERS: dict[str, Reader] = {
    reader.name: reader
    for reader in (
        *(idx.READER, cifar.BINARY, cifar.PYTHON, pickles.READER, images.READER, texts.READER),
        *(archives.TAR, archives.ZIP, checkpoints.WEIGHTS, checkpoints.RUN, *results.READERS),
        *(ledgers.LEDGER, ledgers.STORE, sweeps.READER),
        *(run_folders.MARKER, run_folders.REPORT, run_folders.FETCHED, run_folders.PARTIAL),
    )
}
