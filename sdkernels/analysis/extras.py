"""Optional packages, imported when first needed."""

import importlib
from typing import Any


def require(package: str, what_for: str) -> Any:
    """Import ``package``.

    Raises:
        ImportError: it is not installed; says what needs it and how to get it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        root = package.partition(".")[0]
        raise ImportError(f'{what_for} needs {root}: `python -m pip install "sdkernels[paper]"`') from error
