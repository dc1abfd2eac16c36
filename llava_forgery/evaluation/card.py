"""Writing an evaluation's figures into the model card of the adapter."""

from collections.abc import Mapping
from os import PathLike
from typing import Any

from llava_forgery.hosts.adapter import add_figures

_PARTS = {"detector": "kfd", "answer": "text"}
_FIGURES = ("auc", "ap", "eer", "fpr", "fnr", "accuracy", "mask_iou")


def card_figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a ``metrics.json`` that a card shows; those of videos, if there are any.

    Args:
        metrics: Return value of :func:`~llava_forgery.evaluation.simulated.evaluate_simulated` or
            :func:`~llava_forgery.evaluation.labelled.evaluate_labelled`.
    """
    figures: dict[str, float] = {}
    for name, key in _PARTS.items():
        part = metrics.get(key) or {}
        part = part.get("video") or part.get("frame") or part
        known = {figure: part.get(figure) for figure in _FIGURES}
        figures |= {f"{name} {f}": value for f, value in known.items() if value is not None}
    if metrics.get("regions_f1") is not None:
        figures["regions F1"] = metrics["regions_f1"]
    return figures


def write_figures(adapter: str | PathLike, metrics: Mapping[str, Any], of: str) -> None:
    """Write an evaluation's figures into an adapter's model card.

    Args:
        adapter: Folder of the adapter, in either layout.
        metrics: As for :func:`card_figures`; ``images`` is the number of images.
        of: Kind of images, such as "simulated forgeries".

    Raises:
        FileNotFoundError: The adapter has no card.
    """
    add_figures(adapter, card_figures(metrics), f"{metrics['images']} images ({of})")
