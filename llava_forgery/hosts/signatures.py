"""Wrappers of a model's methods that take more keywords, and say so."""

import inspect
from collections.abc import Callable
from typing import Any


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
