"""How well a pseudo-word tells real from fake, by folder, for held-in and held-out sets separately.

As in the paper, both answers are ranked by their whole likelihood; nothing is generated.

Source: AntifakePrompt (arXiv:2310.17419), section 4; nctu-eva-lab/AntifakePrompt at 957c1e1.
"""

from collections.abc import Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from llava_forgery.constants import FAKE, LABEL_NAMES, REAL
from llava_forgery.data.labelled import LabelledFile
from llava_forgery.evaluation.metrics import accuracy, auc
from llava_forgery.evaluation.records import KeptRecords
from llava_forgery.files import fingerprint_of
from llava_forgery.hosts.likelihood import label_log_likelihoods
from llava_forgery.hosts.pseudo_word import PseudoWordVLM
from llava_forgery.images import read_image
from llava_forgery.train.antifake_prompt import AnswerCollator, encode_answer

THRESHOLD = 0.5
HELD_IN, HELD_OUT = "held_in", "held_out"


@torch.inference_mode()
def rank_answers(vlm: PseudoWordVLM, images: Sequence[Image.Image]) -> list[float]:
    """P(fake) of each image.

    Args:
        vlm: Model from ``attach_pseudo_word`` or ``load_pseudo_word``, in eval mode.
        images: RGB images.

    Returns:
        Likelihood of the fake answer divided by that of both answers together, in [0, 1].
    """
    labels = (REAL, FAKE)
    samples = [
        encode_answer(vlm.processor, vlm.config, label, image)
        for image in images
        for label in labels
    ]
    batch = AnswerCollator(vlm.processor)(samples)
    batch = {name: tensor.to(vlm.device) for name, tensor in batch.items()}
    found, _ = label_log_likelihoods(vlm, **batch)
    likelihoods = found.sum(dim=1).view(-1, len(labels))
    return likelihoods.softmax(dim=1)[:, FAKE].tolist()


def evaluate_pseudo_word(
    vlm: PseudoWordVLM,
    images: Sequence[LabelledFile],
    output_dir: str | PathLike,
    *,
    batch_size: int = 8,
) -> dict[str, Any]:
    """Judge photos and write the figures.

    Args:
        vlm: Model with a trained word, in eval mode.
        images: Output of ``read_labelled``.
        output_dir: Receives ``records.jsonl`` (a line for each photo) and ``metrics.json``. An
            interrupted call resumes if photos and weights are the same.
        batch_size: Number of photos judged at once; each is read with both answers.

    Returns:
        As for :func:`summarise_sets`.
    """
    photos = [[str(i.path), i.set, i.label, Path(i.path).stat().st_size] for i in images]
    settings = {"word": asdict(vlm.config), "photos": fingerprint_of(photos)}
    with KeptRecords(output_dir, settings, vlm, batch_size) as kept:
        for places in kept.batches(len(images), "evaluate"):
            batch = [images[place] for place in places]
            pixels = [Image.fromarray(read_image(image.path)) for image in batch]
            kept.add(
                [
                    {
                        "path": str(image.path),
                        "set": image.set,
                        "label": image.label,
                        "p_fake": p_fake,
                        "prediction": FAKE if p_fake >= THRESHOLD else REAL,
                    }
                    for image, p_fake in zip(batch, rank_answers(vlm, pixels), strict=True)
                ]
            )
        metrics = summarise_sets(kept.records, vlm.sources)
        kept.finish(metrics)
    return metrics


def summarise_sets(records: Sequence[dict[str, Any]], trained: Sequence[str]) -> dict[str, Any]:
    """Figures by set, and of the sets that training saw and did not see.

    Args:
        records: Records with ``set``, ``label``, ``p_fake`` and ``prediction``.
        trained: Names of the held-in sets, which training saw.

    Returns:
        ``all``, ``held_in`` and ``held_out`` with ``images``, ``accuracy``, ``mean_accuracy`` (over
        the sets, as in the paper) and ``auc``; and ``sets``, by name, each with ``label``,
        ``held_in``, ``images``, ``accuracy`` and ``auc``. The AUC of a set with only fakes is
        against all real photos of the evaluation. A figure that lacks images or a class is null.
    """
    sets = {}
    for name in sorted({record["set"] for record in records}):
        rows = [record for record in records if record["set"] == name]
        labels = {record["label"] for record in rows}
        against = [r for r in records if r["label"] == REAL] if labels == {FAKE} else []
        sets[name] = {
            "label": LABEL_NAMES[labels.pop()] if len(labels) == 1 else "both",
            "held_in": name in trained,
            "images": len(rows),
            "accuracy": _accuracy(rows),
            "auc": _auc([*rows, *against]),
        }
    return {
        "all": _group(records, sets),
        HELD_IN: _group([r for r in records if r["set"] in trained], sets),
        HELD_OUT: _group([r for r in records if r["set"] not in trained], sets),
        "sets": sets,
    }


def table_of(metrics: dict[str, Any]) -> str:
    """The figures as text: a line for each set, then the three groups."""
    width = max(len(name) for name in [*metrics["sets"], HELD_OUT])
    head = f"{'set':<{width}}  {'images':>6}  {'accuracy':>8}  {'AUC':>6}  seen in training"
    lines = [head, "-" * len(head)]
    for name, figures in metrics["sets"].items():
        lines.append(_line(name, figures, width) + ("  yes" if figures["held_in"] else "  no"))
    lines.append("-" * len(head))
    lines += [_line(name, metrics[name], width) for name in (HELD_IN, HELD_OUT, "all")]
    return "\n".join(lines)


def _line(name: str, figures: dict[str, Any], width: int) -> str:
    accuracy_, auc_ = (
        "-" if figures[key] is None else f"{figures[key]:.3f}" for key in ("accuracy", "auc")
    )
    return f"{name:<{width}}  {figures['images']:>6}  {accuracy_:>8}  {auc_:>6}"


def _group(rows: Sequence[dict[str, Any]], sets: dict[str, dict[str, Any]]) -> dict[str, Any]:
    names = {row["set"] for row in rows}
    means = [sets[name]["accuracy"] for name in names]
    return {
        "images": len(rows),
        "accuracy": _accuracy(rows),
        "mean_accuracy": float(np.mean(means)) if means else None,
        "auc": _auc(rows),
    }


def _accuracy(rows: Sequence[dict[str, Any]]) -> float | None:
    if not rows:
        return None
    return accuracy([r["label"] for r in rows], [r["prediction"] for r in rows])


def _auc(rows: Sequence[dict[str, Any]]) -> float | None:
    labels = [row["label"] for row in rows]
    if len(set(labels)) < 2:
        return None
    return auc(labels, [row["p_fake"] for row in rows])
