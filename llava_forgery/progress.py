"""Progress bars with the number of items and the remaining time."""

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
        items: Items to iterate over; None if the caller reports progress itself (``update``).
        title: Description of the work.
        unit: Unit of the items, in the singular.
        hidden: Whether to show no bar.
        options: Further options of tqdm, such as ``total``.
    """
    # None instead of False: without a terminal a bar is a flood of lines.
    disable = True if hidden or not notices_wanted() else None
    return tqdm(items, title, unit=unit, disable=disable, dynamic_ncols=True, **options)
