"""A network of a sweep by its settings, and how it is built from them."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import nn

from sdkernels.engine.digest import Digest
from sdkernels.lab import models
from sdkernels.lab.datasets import NAMES, TEXT_NAMES
from sdkernels.lab.folders import IMAGE_SIZE, IMAGENET, FolderData
from sdkernels.lab.labelled import LabelledData
from sdkernels.lab.seeds import seed_for
from sdkernels.lab.tokens import TokenData
from sdkernels.lab.training import TrainingOptions

# Of the keys; goes up when the same settings would mean something else.
FORMAT = 1

# What classifiers are trained and measured on, and what all networks are trained on.
Examples = LabelledData | FolderData
SweepData = Examples | TokenData

LANGUAGE_MODEL = "lstm"


@dataclass(frozen=True)
class NetworkSettings:
    """One network: everything that its weights depend on, but for the bytes of the data.

    Attributes:
        data: a data set's name, or ``"imagenet"``, which is read from folders of images as it is needed
            (:mod:`sdkernels.lab.folders`); ``examples`` of its ``split``, the first so many, or all. Folders are sorted
            by class: theirs are spread evenly over them. Or a text's name, of which ``examples`` counts tokens.
        split: ``"train"`` or ``"all"``; of texts ``"train"`` or ``"validation"``: the part that is trained on, all of
            whose words are the vocabulary.
        standardise: every channel to mean 0 and standard deviation 1, by the training examples' statistics, of folders
            by ImageNet's published ones.
        corruption: the fraction of training labels that are permuted among themselves.
        corruption_seed: of that; None: one made from ``seed``. Networks that memorise the same labels share it.
        model: ``"mlp"``, ``"convnet"``, ``"resnet18"`` or ``"resnet50"``; of texts ``"lstm"``.
        options: what the model's function of ``sdkernels.lab.models`` takes beside the data's shapes and the seed.
        training: how.
        seed: of initialisation and shuffling, each by a seed of its own made from it.
        until: the network as it was after so many epochs of the training; None: at its end. A training that ends
            sooner, as all is memorised, leaves its last network.
        image_size: of folders alone: the side of the square that is cut out of the centre, after the short side was
            resized to ``round(image_size * 256 / 224)``; None: 224.

    Raises:
        ValueError: a name or value that there is not.

    Example:
        >>> from sdkernels.lab.datasets import load
        >>> settings = NetworkSettings("digits", "mlp", {"hidden": [32, 32]}, TrainingOptions(epochs=1), corruption=0.5)
        >>> settings.build(load("digits"))[0]
        Linear(in_features=64, out_features=32, bias=True)
    """

    data: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    training: TrainingOptions = field(default_factory=lambda: TrainingOptions(epochs=1))
    split: str = "train"
    examples: int | None = None
    standardise: bool = False
    corruption: float = 0.0
    corruption_seed: int | None = None
    seed: int = 0
    until: int | None = None
    image_size: int | None = None

    def __post_init__(self) -> None:
        for name, choices in (
            ("data", (*NAMES, IMAGENET, *TEXT_NAMES)),
            ("model", tuple(_BUILDERS)),
            ("split", ("train", "validation") if self.is_text else ("train", "all")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(choices)}")
        if not isinstance(self.standardise, bool):
            raise ValueError(f"standardise={self.standardise!r} must be true or false")
        if isinstance(self.corruption, bool) or not (
            isinstance(self.corruption, (int, float)) and 0 <= self.corruption <= 1
        ):
            raise ValueError(f"corruption={self.corruption!r} must be a number in 0..1")
        for name in ("seed", "corruption_seed", "examples"):
            value = getattr(self, name)
            optional = name != "seed" and value is None
            if not optional and not is_whole(value, at_least=int(name == "examples")):
                raise ValueError(f"{name}={value!r} must be a whole number, at least {int(name == 'examples')}")
        if self.until is not None:
            self._check_until(self.until)
        if self.is_text or self.model == LANGUAGE_MODEL:
            self._check_text()
        elif self.data == IMAGENET:
            self._check_folders()
        elif self.image_size is not None:
            raise ValueError(
                f"image_size={self.image_size!r} is of folders of images, data={IMAGENET!r}; the images of {self.data} "
                "have a size"
            )

    @property
    def is_text(self) -> bool:
        """Whether the data are a text, and not images."""
        return self.data in TEXT_NAMES

    def record(self) -> dict[str, Any]:
        """As JSON holds it; without ``until`` and ``image_size`` where there is none."""
        record = {**asdict(self), "training": self.training.record(), "options": dict(self.options)}
        if self.until is None:
            del record["until"]
        del record["image_size"]
        return {**record, "image_size": self.image_size or IMAGE_SIZE} if self.data == IMAGENET else record

    def identity(self) -> Any:
        """What tells it from other networks: that of a training's last epoch is that of the training's end."""
        is_end = self.until is not None and self.until == self.training.epochs
        return canonical((replace(self, until=None) if is_end else self).record())

    def training_run(self) -> Any:
        """What tells its training from others: networks at several moments of one training have it in common."""
        return canonical(replace(self, until=None).record())

    def key(self, untrained: nn.Module, *data_sha256: str) -> str:
        """A digest of everything that weights and accuracies depend on, the network as it was built among it."""
        return Digest(FORMAT, self.identity(), untrained, data_sha256).hex

    def _check_until(self, until: object) -> None:
        epochs = self.training.epochs
        if epochs is None:
            raise ValueError(
                f"until={until!r} counts epochs, and the training is given by steps={self.training.steps}: give it by "
                "epochs="
            )
        if not is_whole(until, at_least=1) or until > epochs:  # type: ignore[operator]  # a whole number is left
            raise ValueError(f"until={until!r} must be a whole number of the training's epochs, 1..{epochs}, or None")

    def _check_text(self) -> None:
        if self.model != LANGUAGE_MODEL:
            raise ValueError(
                f"model={self.model!r} takes images, and data={self.data!r} is a text: choose "
                f"model={LANGUAGE_MODEL!r}, or images"
            )
        if not self.is_text:
            raise ValueError(
                f"model={self.model!r} reads a text, and data={self.data!r} are images: choose one of "
                f"{', '.join(TEXT_NAMES)}, or another model"
            )
        for name, nothing, of in (
            ("standardise", False, "pixels"),
            ("corruption", 0, "labels, of which a text has none"),
            ("corruption_seed", None, "labels, of which a text has none"),
            ("image_size", None, "folders of images"),
        ):
            if getattr(self, name) != nothing:
                raise ValueError(f"{name}={getattr(self, name)!r} is of {of}; {self.data} is a text: leave it out")
        if self.training.augmentation != "none":
            raise ValueError(f"augmentation={self.training.augmentation!r} is of images; {self.data} is a text")

    def _check_folders(self) -> None:
        if self.image_size is not None and not is_whole(self.image_size, at_least=1):
            raise ValueError(f"image_size={self.image_size!r} must be a whole number, at least 1, or None")
        if self.split != "train":
            raise ValueError(f"split={self.split!r}: {IMAGENET} is trained on its folder train; choose split='train'")
        if self.model == "mlp":
            raise ValueError(f"model='mlp' takes data that is in memory, and {IMAGENET} is not; choose a ResNet")

    def build(self, data: SweepData) -> nn.Module:
        """The network, not yet trained, for this data.

        Raises:
            ValueError: an option that the model does not have, or a value that cannot be.
        """
        needs, has = _options_of(self.model)
        unknown, missing = sorted({*self.options} - has), sorted(needs - {*self.options})
        if unknown:
            raise ValueError(
                f"model {self.model!r} has no option {', '.join(unknown)}; it has {', '.join(sorted(has))}"
            )
        if missing:
            raise ValueError(f"model {self.model!r} needs the option {', '.join(missing)}")
        try:
            return _BUILDERS[self.model](data, seed_for("initialisation", self.seed), **self.options)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"model {self.model!r} with options {dict(self.options)}: {error}") from error


def are_of_one_training(networks: Sequence[NetworkSettings]) -> bool:
    """Whether a group's networks come from one training, at several moments of it, and not from one each."""
    return len(networks) == 1 or any(network.until is not None for network in networks)


def flat(network: NetworkSettings) -> dict[str, Any]:
    """A network's settings without folders: options and training options stand beside the others."""
    record = network.record()
    return {**record.pop("options"), **record.pop("training"), **record}


def canonical(value: Any) -> Any:
    """Settings, the same whatever their order, and whether a whole number was written as 1 or as 1.0."""
    if isinstance(value, Mapping):
        return {name: canonical(value[name]) for name in sorted(value)}
    if isinstance(value, (list, tuple)):
        return [canonical(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def is_whole(value: object, *, at_least: int) -> bool:
    """Whether it is an int, and not a bool, from here on."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least


def is_number(value: object) -> bool:
    """Whether it is an int or a float, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _mlp(data: LabelledData, seed: int, *, hidden: list[int], dropout: float = 0.0) -> nn.Module:
    if not isinstance(hidden, (list, tuple)) or not all(is_whole(units, at_least=1) for units in hidden):
        raise ValueError(f"hidden={hidden!r} must be a list of whole numbers, at least 1")
    return models.mlp(data.flattened().inputs.shape[1], hidden, data.classes, seed, dropout)


def _convnet(data: Examples, seed: int, **options: Any) -> nn.Module:
    channels, height, _ = data.shape
    return models.convnet(classes=data.classes, in_channels=channels, image_size=height, seed=seed, **options)


def _resnet18(data: Examples, seed: int, **options: Any) -> nn.Module:
    return models.resnet18(classes=data.classes, in_channels=data.shape[0], seed=seed, **options)


def _resnet50(data: Examples, seed: int, **options: Any) -> nn.Module:
    return models.resnet50(classes=data.classes, in_channels=data.shape[0], seed=seed, **options)


def _lstm(
    data: TokenData,
    seed: int,
    *,
    hidden: int,
    embedding: int,
    layers: int = 3,
    dropout: float = 0.0,
    tied: bool = False,
) -> nn.Module:
    for name, value in (("hidden", hidden), ("embedding", embedding), ("layers", layers)):
        if not is_whole(value, at_least=1):
            raise ValueError(f"{name}={value!r} must be a whole number, at least 1")
    if not is_number(dropout) or not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout!r} must be a number, at least 0 and below 1")
    if not isinstance(tied, bool):
        raise ValueError(f"tied={tied!r} must be true or false")
    return models.lstm_language_model(
        data.classes, embedding=embedding, hidden=hidden, layers=layers, dropout=dropout, tied=tied, seed=seed
    )


_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "mlp": _mlp,
    "convnet": _convnet,
    "resnet18": _resnet18,
    "resnet50": _resnet50,
    LANGUAGE_MODEL: _lstm,
}


def _options_of(model: str) -> tuple[set[str], set[str]]:
    """The options that a model needs, and all that it has."""
    ours: dict[str, Callable[..., nn.Module]] = {"mlp": _mlp, LANGUAGE_MODEL: _lstm}
    function: Callable[..., nn.Module] = ours[model] if model in ours else getattr(models, model)
    own = {"data", "seed", "classes", "in_channels", "image_size"}
    found = {name: p for name, p in inspect.signature(function).parameters.items() if name not in own}
    return {name for name, p in found.items() if p.default is p.empty}, {*found}
