"""The keys and values of earlier tokens, which transformers renamed, and methods that take them.

From 5.24 on ``forward``, ``generate`` and their outputs call them ``cache``, before that
``past_key_values``; the old name is to go with 5.40. Models written for the old name, such as the
``llava`` package's, are handed the new one by ``generate`` and refuse it.
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
"""What this transformers calls it."""


def cache_in(values: Mapping[str, Any]) -> Any:
    """The cache among a call's keywords, by either name; None where there is none."""
    found = values.get(NEW)
    return values.get(OLD) if found is None else found


def takes_cache(function: Callable[..., Any]) -> Callable[..., Any]:
    """A model's method that knows the old name alone, taking today's as well.

    Args:
        function: ``forward`` or ``prepare_inputs_for_generation``; unbound.

    Returns:
        The same function where there is nothing to do.
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

    transformers reads which inputs a model takes off its methods' signatures.

    Args:
        wrapper: Takes what ``function`` takes, and ``names``.
        function: What it wraps.
        names: Of the keywords.

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
