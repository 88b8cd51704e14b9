"""sdkernels: what does a trained network lose when directions of its activation space are removed or perturbed?

The public API is in ``sdkernels.public``. It is imported when its first name is used, not before: a program that only
may need it, and each of its worker processes, then starts as soon as torch does.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

try:
    __version__ = version("sdkernels")
except PackageNotFoundError as error:
    raise ImportError("sdkernels was found, but is not installed: `python -m pip install .` in its folder") from error

if TYPE_CHECKING:
    from sdkernels.public import *  # noqa: F403
    from sdkernels.public import __all__ as __all__
else:

    def __getattr__(name: str) -> Any:
        if name.startswith("_") and name != "__all__":  # what Python and its tools ask of any module
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        public = import_module("sdkernels.public")
        globals().update({"__all__": public.__all__}, **{each: getattr(public, each) for each in public.__all__})
        if name not in globals():
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=public)
        return globals()[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *__getattr__("__all__")})
