"""Evaluate a host with the skill on simulated forgeries of people who were not in training."""

from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from llava_forgery.constants import FAKE, LABEL_NAMES, REAL
from llava_forgery.data.build_qa import to_bytes
from llava_forgery.evaluation.intervals import bootstrap_interval
from llava_forgery.evaluation.metrics import (
    accuracy,
    agreement,
    auc,
    average_precision,
    equal_error_rate,
    mask_iou,
    region_scores,
)
from llava_forgery.evaluation.scorers import RECORD_NAMES
from llava_forgery.files import read_json_lines, write_json, write_json_lines, write_text
from llava_forgery.infer.overlay import caption_of, heat_overlay, save_png, side_by_side
from llava_forgery.infer.predictor import ForgeryPredictor, JudgedFace
from llava_forgery.infer.verdict import Verdict
from llava_forgery.qa.answers import parse_answer
from llava_forgery.qa.templates import join_regions
from llava_forgery.simulate.pairs import FacePair, FacePairs

SIMULATED = "simulated forgery made by llava-forgery to evaluate detectors; not a real photograph"


def evaluate_simulated(
    predictor: ForgeryPredictor,
    pairs: FacePairs,
    output_dir: str | PathLike,
    *,
    batch_size: int = 8,
    overlays: int = 8,
) -> dict[str, Any]:
    """Judge the forged and the pristine image of each pair.

    Args:
        predictor: The skill.
        pairs: Of people who were not in training.
        output_dir: Receives ``records.jsonl`` (a line for each image), ``overlays/*.png``,
            ``dialogue.md`` and ``metrics.json``.
        batch_size: Pairs that are judged at once.
        overlays: Number of pictures.

    Returns:
        ``kfd {auc, auc_interval, ap, eer, mask_iou}``, ``text {auc, auc_interval, ap, eer,
        accuracy, unparsed}``, ``regions_f1``, ``agreement`` and ``images``. Mask IoU is the mean
        over forged images at threshold 0.5; the intervals (95 %) draw people, not images.
    """
    output_dir = Path(output_dir)
    records, ious = [], []
    first: FacePair | None = None
    drawn = 0
    for pair, verdicts in _judge(predictor, pairs, batch_size):
        first = first or pair
        truth = pair.mask[0].numpy() > 0.5
        forged, _ = verdicts
        ious.append(mask_iou(forged.mask[None] > 0.5, truth[None]))
        for label, verdict in zip((FAKE, REAL), verdicts, strict=True):
            regions = pair.regions if label == FAKE else ()
            records.append(_record(pairs, pair, label, regions, verdict))
        if drawn < overlays:
            _draw(pair, verdicts, output_dir / "overlays" / f"{drawn:02d}.png")
            drawn += 1
    write_json_lines(output_dir / "records.jsonl", records)
    write_text(output_dir / "dialogue.md", _dialogue(predictor, first))
    metrics = summarise(records, float(np.mean(ious)))
    write_json(output_dir / "metrics.json", metrics)
    return metrics


def summarise(records: list[dict[str, Any]], iou: float) -> dict[str, Any]:
    """The figures of :func:`evaluate_simulated` from its records."""
    labels = np.array([record["label"] for record in records])
    scores = np.array([record["score"] for record in records])
    p_yes = np.array([record["p_yes"] for record in records])
    predictions = [record["answer_label"] for record in records]
    people = [record["identity"] for record in records]
    fakes = [record for record in records if record["label"] == FAKE]
    named = region_scores(
        [tuple(r["answer_regions"]) for r in fakes], [tuple(r["regions"]) for r in fakes]
    )
    return {
        "images": len(records),
        "kfd": {**_ranking(labels, scores, people), "mask_iou": iou},
        "text": {
            **_ranking(labels, p_yes, people),
            "accuracy": accuracy(labels, predictions),
            "unparsed": sum(prediction is None for prediction in predictions),
        },
        "regions_f1": named.f1,
        "agreement": agreement(scores, p_yes),
    }


def draw_roc(
    output_dir: str | PathLike, groups: str = "identity", of: str = "simulated forgeries"
) -> None:
    """Draw ``roc.png`` beside the ``records.jsonl`` that an evaluation wrote.

    Args:
        output_dir: The evaluation's folder.
        groups: Name in the records of what the intervals draw.
        of: What was judged, in words.

    Raises:
        ImportError: matplotlib is missing.
    """
    from llava_forgery.evaluation.figures import roc_figure, save_figure

    output_dir = Path(output_dir)
    records = read_json_lines(output_dir / "records.jsonl")
    figure = roc_figure(
        [record["label"] for record in records],
        {
            name: [record[column] for record in records]
            for name, column in RECORD_NAMES.items()
            if column in records[0]
        },
        groups=[record[groups] for record in records],
    )
    save_figure(figure, output_dir / "roc.png", f"ROC curves on {of}")


def _ranking(labels: np.ndarray, scores: np.ndarray, people: list[str]) -> dict[str, Any]:
    interval = bootstrap_interval(auc, labels, scores, groups=people)
    return {
        "auc": interval.value,
        "auc_interval": [interval.low, interval.high],
        "ap": average_precision(labels, scores),
        "eer": equal_error_rate(labels, scores),
    }


def _judge(
    predictor: ForgeryPredictor, pairs: FacePairs, batch_size: int
) -> Iterator[tuple[FacePair, tuple[Verdict, Verdict]]]:
    """Each pair with the verdicts on its forged and its pristine image."""
    for start in tqdm(range(0, len(pairs), batch_size), desc="evaluate", unit="batch"):
        batch = [pairs[i] for i in range(start, min(start + batch_size, len(pairs)))]
        box = (0.0, 0.0, float(pairs.size), float(pairs.size))
        faces = [JudgedFace(to_bytes(pair.forged), box) for pair in batch]
        faces += [JudgedFace(to_bytes(pair.pristine), box) for pair in batch]
        verdicts = predictor.judge(faces)
        for i, pair in enumerate(batch):
            yield pair, (verdicts[i], verdicts[len(batch) + i])


def _record(
    pairs: FacePairs, pair: FacePair, label: int, regions: tuple[str, ...], verdict: Verdict
) -> dict[str, Any]:
    row = pairs.faces[pair.row]
    return {
        "source": row["source"],
        "identity": row["identity"],
        "label": label,
        "regions": list(regions),
        "score": verdict.score,
        "p_yes": verdict.p_yes,
        "answer": verdict.answer,
        "answer_label": parse_answer(verdict.answer).label,
        "answer_regions": list(verdict.regions),
        "agree": verdict.agree,
    }


def _draw(pair: FacePair, verdicts: tuple[Verdict, Verdict], path: Path) -> None:
    forged, pristine = to_bytes(pair.forged), to_bytes(pair.pristine)
    mask = to_bytes(pair.mask.expand(3, -1, -1))
    sheet = side_by_side(
        [
            (f"forged:\n{join_regions(pair.regions)}", forged),
            (caption_of(verdicts[0]), heat_overlay(forged, verdicts[0].mask)),
            ("true mask", mask),
            ("pristine", pristine),
            (caption_of(verdicts[1]), heat_overlay(pristine, verdicts[1].mask)),
        ]
    )
    save_png(sheet, path, SIMULATED)


def _dialogue(predictor: ForgeryPredictor, pair: FacePair) -> str:
    """A dialogue of two turns about a forged face, as Markdown."""
    dialogue = predictor.dialogue(to_bytes(pair.forged), cropped=True)
    for question in ("Is this a deepfake image?", "Where is the artifact?"):
        dialogue.ask(question)
    lines = [
        "# A dialogue about a face that was not seen in training",
        "",
        f"Truth: {LABEL_NAMES[FAKE]}, forged at the {join_regions(pair.regions)}. "
        f"Score of the detector: {dialogue.score:.2f}. Picture: overlays/00.png.",
        "",
    ]
    for message in dialogue.messages:
        lines += [f"**{message.role.capitalize()}**: {message.text}", ""]
    return "\n".join(lines)
