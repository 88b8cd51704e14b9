"""Optional packages, imported when first needed, and the extras that bring them."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# What is imported: the package to install, and the extra that brings it.
BROUGHT = {
    "PIL": ("pillow", "paper"),
    "matplotlib": ("matplotlib", "paper"),
    "pandas": ("pandas", "paper"),
    "pyarrow": ("pyarrow", "parquet"),
    "ray": ("ray", "scale"),
    "safetensors": ("safetensors", "paper"),
    "scipy": ("scipy", "paper"),
    "sklearn": ("scikit-learn", "paper"),
    "tomli": ("tomli", "paper"),
    "tqdm": ("tqdm", "paper"),
    "typer": ("typer", "paper"),
}


def require(package: str, what_for: str) -> Any:
    """Import ``package``.

    Raises:
        ImportError: it is not installed; says what needs it and how to get it.
    """
    with needed_by(what_for):
        return importlib.import_module(package)


@contextmanager
def needed_by(what_for: str) -> Iterator[None]:
    """Imports go within.

    Raises:
        ImportError: an optional package is not installed; says what needs it and how to get it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        root = (error.name or "").partition(".")[0]
        if root not in BROUGHT:
            raise
        package, extra = BROUGHT[root]
        raise ImportError(
            f'{what_for} needs {package}: `python -m pip install "sdkernels[{extra}]"`', name=root
        ) from error
