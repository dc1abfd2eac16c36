"""Evaluate a host with the skill on simulated forgeries of people who were not in training."""

from collections.abc import Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from llava_forgery.constants import FAKE, LABEL_NAMES, REAL
from llava_forgery.data.samples import SimulatedSamples
from llava_forgery.evaluation.figures import roc_figure, save_figure
from llava_forgery.evaluation.groups import Attributes, attribute_tables
from llava_forgery.evaluation.intervals import bootstrap_interval
from llava_forgery.evaluation.leaks import people_in_training
from llava_forgery.evaluation.metrics import (
    accuracy,
    auc,
    average_precision,
    equal_error_rate,
    error_rates,
    mask_iou,
    region_scores,
    tpr_at_fpr,
)
from llava_forgery.evaluation.perturb import as_on_the_web
from llava_forgery.evaluation.records import RECORDS, KeptRecords
from llava_forgery.evaluation.report import agreement_report
from llava_forgery.evaluation.scorers import RECORD_NAMES
from llava_forgery.files import read_json_lines, write_text
from llava_forgery.images import save_png
from llava_forgery.infer.dialogue import Dialogue
from llava_forgery.infer.overlay import caption_of, heat_overlay, side_by_side
from llava_forgery.infer.predictor import FaceInput, ForgeryPredictor
from llava_forgery.infer.verdict import P_YES_THRESHOLD, Verdict
from llava_forgery.kfd.calibration import Thresholds
from llava_forgery.qa.answers import parse_answer
from llava_forgery.qa.templates import join_regions
from llava_forgery.simulate.pairs import FacePair, FacePairs
from llava_forgery.tensors import to_bytes

SIMULATED = "simulated forgery made by llava-forgery to evaluate detectors; not a real photograph"


def evaluate_simulated(
    predictor: ForgeryPredictor,
    pairs: FacePairs,
    output_dir: str | PathLike,
    *,
    batch_size: int = 8,
    overlays: int = 8,
    web: bool = True,
    uncited: bool = False,
    attributes: Attributes | None = None,
) -> dict[str, Any]:
    """Judge the forged and the pristine image of each pair.

    Args:
        predictor: Predictor with a host.
        pairs: Pairs of people who were not in training.
        output_dir: Receives ``records.jsonl`` (a line for each image), ``overlays/*.png``,
            ``dialogue.md`` and ``metrics.json``. An interrupted call resumes if pairs and weights
            are the same.
        batch_size: Number of pairs judged at once.
        overlays: Number of overlay pictures.
        web: Score each pair a second time, resized and compressed as on the web.
        uncited: Ask a second time, without the detector's score in the prompt.
        attributes: Attributes of people, from
            :func:`~llava_forgery.evaluation.groups.read_attributes`.

    Returns:
        ``kfd {auc, auc_interval, ap, eer, tpr_at_fpr_1, fpr, fnr, mask_iou}``, ``text {auc,
        auc_interval, ap, eer, tpr_at_fpr_1, accuracy, unparsed}``, ``regions_f1``, ``thresholds``,
        ``agreement``, ``agreement_if_certain``, ``uncertain``, ``images``, and the numbers of
        different ``photographs`` and ``people``. With ``uncited`` also ``text_uncited``, like
        ``text`` but without generated answers. With ``web`` also ``web``, with ``kfd`` and ``text``
        of the degraded images; ``groups``, by attribute and score. Mask IoU is the mean over forged
        images of masks thresholded at 0.5; the intervals (95 %) resample people.

    Raises:
        ImportError: ``web`` without PyAV.
        ValueError: An interrupted call had different settings.
    """
    output_dir = Path(output_dir)
    settings = {
        "pairs": SimulatedSamples(pairs).describe(),
        "max_new_tokens": predictor.max_new_tokens,
        "overlays": overlays,
        "web": web,
        "uncited": uncited,
    }
    with KeptRecords(output_dir, settings, predictor.vlm, batch_size, each=2) as kept:
        for places in kept.batches(len(pairs), "evaluate"):
            batch = [pairs[place] for place in places]
            records = []
            faces = _faces(predictor, batch)
            for place, pair, verdicts in zip(places, batch, _judge(predictor, faces), strict=True):
                for label, verdict in zip((FAKE, REAL), verdicts, strict=True):
                    records.append(_record(pairs, pair, label, verdict))
                if place < overlays:
                    _draw(pair, verdicts, output_dir / "overlays" / f"{place:02d}.png")
            if uncited:
                _, p_yes = predictor.predict_scores(faces, cite_scores=False)
                records = [
                    {**record, "p_yes_uncited": p} for record, p in zip(records, p_yes, strict=True)
                ]
            if web:
                seen = _scores_on_the_web(predictor, pairs.seed, places, batch)
                records = [{**record, **own} for record, own in zip(records, seen, strict=True)]
            kept.add(records)
        write_text(output_dir / "dialogue.md", _dialogue(predictor, pairs[0]))
        people = (record["identity"] for record in kept.records)
        metrics = {
            **summarise(kept.records, predictor.kfd.thresholds, attributes),
            "people_in_training": people_in_training(predictor.vlm, people),
        }
        kept.finish(metrics)
    return metrics


def summarise(
    records: list[dict[str, Any]],
    thresholds: Thresholds | None = None,
    attributes: Attributes | None = None,
) -> dict[str, Any]:
    """The figures of :func:`evaluate_simulated` from its records."""
    thresholds = thresholds or Thresholds()
    labels = np.array([record["label"] for record in records])
    scores = np.array([record["score"] for record in records])
    p_yes = np.array([record["p_yes"] for record in records])
    predictions = [record["answer_label"] for record in records]
    people = [record["identity"] for record in records]
    fakes = [record for record in records if record["label"] == FAKE]
    named = region_scores(
        [tuple(r["answer_regions"]) for r in fakes], [tuple(r["regions"]) for r in fakes]
    )
    metrics: dict[str, Any] = {
        "images": len(records),
        "photographs": len({record["source"] for record in records}),
        "people": len(set(people)),
        "kfd": {
            **_ranking(labels, scores, people, thresholds.fake),
            "mask_iou": float(np.mean([r["mask_iou"] for r in fakes])),
        },
        "text": {
            **_ranking(labels, p_yes, people),
            "accuracy": accuracy(labels, predictions),
            "unparsed": sum(prediction is None for prediction in predictions),
        },
        "regions_f1": named.f1,
        "thresholds": asdict(thresholds),
        **agreement_report(scores, p_yes, thresholds),
        "groups": attribute_tables(
            records,
            {"kfd": (scores, thresholds.fake), "text": (p_yes, P_YES_THRESHOLD)},
            attributes,
        ),
    }
    if "p_yes_uncited" in records[0]:
        uncited = np.array([record["p_yes_uncited"] for record in records])
        metrics["text_uncited"] = _ranking(labels, uncited, people)
    if "web_score" in records[0]:
        seen = {name: np.array([r[f"web_{name}"] for r in records]) for name in ("score", "p_yes")}
        metrics["web"] = {
            "kfd": _ranking(labels, seen["score"], people, thresholds.fake),
            "text": _ranking(labels, seen["p_yes"], people),
        }
    return metrics


def draw_roc(
    output_dir: str | PathLike, groups: str = "identity", of: str = "simulated forgeries"
) -> None:
    """Draw ``roc.png`` next to the ``records.jsonl`` that an evaluation wrote.

    Args:
        output_dir: Folder of the evaluation.
        groups: Field of the records by which the intervals resample.
        of: Kind of images, such as "simulated forgeries".

    Raises:
        ImportError: matplotlib is missing.
    """
    output_dir = Path(output_dir)
    records = read_json_lines(output_dir / RECORDS)
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


def _ranking(
    labels: np.ndarray, scores: np.ndarray, people: list[str], threshold: float | None = None
) -> dict[str, Any]:
    rates = {}
    if threshold is not None:
        rates["fpr"], rates["fnr"] = error_rates(labels, scores, threshold)
    interval = bootstrap_interval(auc, labels, scores, groups=people)
    return {
        "auc": interval.value,
        "auc_interval": [interval.low, interval.high],
        "ap": average_precision(labels, scores),
        "eer": equal_error_rate(labels, scores),
        "tpr_at_fpr_1": tpr_at_fpr(labels, scores, 0.01),
        **rates,
    }


def _scores_on_the_web(
    predictor: ForgeryPredictor, seed: int, places: Sequence[int], batch: Sequence[FacePair]
) -> list[dict[str, float]]:
    """Fields to add to the records, alternating between forged and pristine."""
    size = float(predictor.size)
    faces = [
        FaceInput(image, (0.0, 0.0, size, size))
        for place, pair in zip(places, batch, strict=True)
        for image in as_on_the_web(
            np.stack([to_bytes(pair.forged), to_bytes(pair.pristine)]), seed, place
        )
    ]
    scores, p_yes = predictor.predict_scores(faces)
    return [{"web_score": score, "web_p_yes": p} for score, p in zip(scores, p_yes, strict=True)]


def _faces(predictor: ForgeryPredictor, batch: Sequence[FacePair]) -> list[FaceInput]:
    """The forged and the pristine image of each pair, alternating as in the records."""
    size = float(predictor.size)
    images = (image for pair in batch for image in (pair.forged, pair.pristine))
    return [FaceInput(to_bytes(image), (0.0, 0.0, size, size)) for image in images]


def _judge(
    predictor: ForgeryPredictor, faces: Sequence[FaceInput]
) -> list[tuple[Verdict, Verdict]]:
    """The verdicts of each pair."""
    verdicts = predictor.predict_faces(faces)
    return list(zip(verdicts[::2], verdicts[1::2], strict=True))


def _record(pairs: FacePairs, pair: FacePair, label: int, verdict: Verdict) -> dict[str, Any]:
    row = pairs.faces[pair.row]
    forged = label == FAKE
    truth = pair.mask.numpy() > 0.5
    return {
        "source": row["source"],
        "identity": row["identity"],
        "face_size": row["box"][2] - row["box"][0],
        "label": label,
        "regions": list(pair.regions) if forged else [],
        "score": verdict.score,
        "p_yes": verdict.p_yes,
        "answer": verdict.answer,
        "answer_label": parse_answer(verdict.answer).label,
        "answer_regions": list(verdict.regions),
        "agree": verdict.agree,
        "mask_iou": mask_iou(verdict.mask[None] > 0.5, truth) if forged else None,
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
    # Already framed, so no face detector is needed.
    dialogue = Dialogue(predictor.vlm, to_bytes(pair.forged), predictor.max_new_tokens)
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
