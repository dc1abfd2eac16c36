"""Progress bars: what is done, of how much, and how long the rest takes."""

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from llava_forgery.noise import notices_wanted


def progress(
    items: Iterable[Any] | None = None,
    title: str = "",
    unit: str = "item",
    hidden: bool = False,
    **options: Any,
) -> tqdm:
    """A bar on stderr, if that is a terminal and ``--quiet`` was not given.

    Args:
        items: What is passed on; None where the caller tells of what is done (``update``).
        title: What is being done.
        unit: What is counted, in the singular.
        hidden: Show none.
        options: Further ones of tqdm, such as ``total``.
    """
    # None, and not False: elsewhere than on a terminal a bar is a flood of lines.
    disable = True if hidden or not notices_wanted() else None
    return tqdm(items, title, unit=unit, disable=disable, dynamic_ncols=True, **options)
