"""Packages that only some users need, imported where they are used."""

import importlib
from types import ModuleType


def require(package: str, extra: str, feature: str) -> ModuleType:
    """Import an optional package, or say which extra brings it.

    Args:
        package: Name to import, such as ``"dlib"``.
        extra: The extra of llava-forgery that installs it, such as ``"faces"``.
        feature: What the caller needs it for, as the error will say it.

    Raises:
        ImportError: The package is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"{feature} needs the package {package!r}, which could not be imported ({error}). "
            f"Install it with: pip install 'llava-forgery[{extra}]'"
        ) from error
