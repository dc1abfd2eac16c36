"""Packages that only some users or calls need, imported where they are used."""

import importlib
import importlib.util
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from llava_forgery.noise import quiet


class lazy(ModuleType):
    """``name = lazy("name")``: a package imported on first use, with its submodules.

    For packages that take long to import and that only some calls need. Monkeypatches on it are
    only visible through this name.

    Args:
        package: Name to import; the package must be installed.
    """

    _package: ModuleType | None = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__version__":
            raise AttributeError(name)
        if self._package is None:
            with quiet():
                self._package = importlib.import_module(self.__name__)
        try:
            return getattr(self._package, name)
        except AttributeError:
            with suppress(ModuleNotFoundError):
                return importlib.import_module(f"{self.__name__}.{name}")
            raise


def require(package: str, extra: str, feature: str) -> ModuleType:
    """Import an optional package, or raise an error that names the extra that installs it.

    Args:
        package: Name to import, such as ``"dlib"``.
        extra: Extra of llava-forgery that installs it, such as ``"faces"``.
        feature: Feature that needs it, for the error message.

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


def packaged_file(package: str, pattern: str, feature: str, install: str) -> Path:
    """A file of an installed package, found without importing the package.

    Args:
        package: Name of the package's folder.
        pattern: Pattern of the file's path within it; must match one file.
        feature: Feature that needs it, for the error message.
        install: Arguments of ``pip install`` that install it.

    Raises:
        FileNotFoundError: The package is not installed, or holds no such file.
    """
    found = importlib.util.find_spec(package)
    folders = (found.submodule_search_locations or []) if found else []
    files = sorted(file for folder in folders for file in Path(folder).glob(pattern))
    if len(files) != 1:
        raise FileNotFoundError(
            f"{feature} needs {pattern} from the package {package}, found {len(files)} such files. "
            f"Install it with: pip install {install}"
        )
    return files[0]
