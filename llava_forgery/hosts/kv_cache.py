"""The cache of keys and values, which transformers renamed, and methods that take it.

Since 5.24 ``forward``, ``generate`` and their outputs call it ``cache``, before that
``past_key_values``, which 5.40 will remove. Models written for the old name, such as the ``llava``
package's, are passed the new one by ``generate`` and refuse it.
"""

import functools
import importlib.metadata
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from packaging.version import Version

OLD = "past_key_values"
NEW = "cache"
CACHE = NEW if Version(importlib.metadata.version("transformers")) >= Version("5.24.dev0") else OLD
"""Name of the cache in the installed transformers."""


def cache_in(values: Mapping[str, Any]) -> Any:
    """The cache among a call's keywords, by either name; None if there is none."""
    found = values.get(NEW)
    return values.get(OLD) if found is None else found


def takes_cache(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a model's method that only knows the old name accept the current one as well.

    Args:
        function: ``forward`` or ``prepare_inputs_for_generation``, unbound.

    Returns:
        The wrapper, or the same function if there is nothing to do.
    """
    known = inspect.signature(function).parameters
    if CACHE == OLD or NEW in known or OLD not in known:
        return function

    @functools.wraps(function)
    def renamed(*args: Any, cache: Any = None, **kwargs: Any) -> Any:
        if cache is not None:
            kwargs[OLD] = cache
        return function(*args, **kwargs)

    return add_keywords(renamed, function, NEW)


def add_keywords(
    wrapper: Callable[..., Any], function: Callable[..., Any], *names: str
) -> Callable[..., Any]:
    """Give a wrapper the function's signature and further keywords, None by default.

    transformers derives the inputs of a model from the signatures of its methods.

    Args:
        wrapper: Wrapper that takes the arguments of ``function``, and ``names``.
        function: Wrapped function.
        names: Names of the further keywords.

    Returns:
        The wrapper.
    """
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    rest = [p for p in parameters if p.kind is p.VAR_KEYWORD]
    named = [p for p in parameters if p not in rest]
    added = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None) for n in names]
    wrapper.__signature__ = signature.replace(parameters=[*named, *added, *rest])
    return wrapper
