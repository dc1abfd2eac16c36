"""The skill for lmms-eval's models of the ``llava`` package, registered once they import it.

lmms-eval calls its plugins at every start, whatever it evaluates, so nothing heavy is imported
here.
"""

import functools
import importlib
import importlib.abc
import importlib.machinery
import logging
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

logger = logging.getLogger(__name__)

_PACKAGE = "llava"


def register_on_import() -> None:
    """Register as soon as this process imports ``llava``, LLaVA-NeXT's included.

    If ``llava`` is already imported, the skill is registered at once. A ``llava`` that does not
    support the skill is left unchanged, with a warning. Calling it again has no effect.
    """
    if _PACKAGE in sys.modules:
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds ``llava`` through the other finders, and registers the skill after its execution."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _PACKAGE:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module
            spec.loader.exec_module = functools.partial(self._execute, execute)
        return spec

    def _execute(self, execute: Callable[[ModuleType], None], module: ModuleType) -> None:
        sys.meta_path.remove(self)
        # The package already imports its models during its execution.
        _compat().prepare_import()
        execute(module)
        _register()


def _register() -> None:
    try:
        _compat().register_any()
    except Exception as error:  # Other packages are called llava as well, and must still work.
        logger.warning("the package llava is used without the forgery skill: %s", error)


def _compat() -> ModuleType:
    return importlib.import_module("llava_forgery.hosts.llava.compat")
