"""The functions that the tasks under ``eval/lmms_tasks`` use.

lmms-eval passes the record of each image, from a ``process_`` function, to an aggregation over the
whole set. Yes means fake. An answer that cannot be parsed is wrong, also in the ranking, where it
gets the P(yes) of the other label.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
from PIL import Image

from llava_forgery.constants import FAKE, REAL
from llava_forgery.evaluation import metrics
from llava_forgery.evaluation.checks import OneClassError
from llava_forgery.evaluation.turns import parse_place, turns_agree
from llava_forgery.faces.records import image_pixels
from llava_forgery.files import contained
from llava_forgery.images import read_image
from llava_forgery.integrations.lmms_eval.data import data_path
from llava_forgery.integrations.lmms_eval.protocol import read_report, write_transcript
from llava_forgery.qa import templates
from llava_forgery.qa.answers import parse_answer
from llava_forgery.qa.build import detection_prompt
from llava_forgery.rows import embedded

logger = logging.getLogger(__name__)

CHOICES = ["Yes", "No"]
Doc = Mapping[str, Any]
Record = dict[str, Any]


def pictures(doc: Doc) -> list[Image.Image]:
    """The image of a row: bytes of a file, or a path relative to the manifest."""
    image = doc["image"]
    if isinstance(image, str):
        return [Image.fromarray(read_image(contained(data_path().parent, image)))]
    return [Image.fromarray(image_pixels(image, "RGB"))]


def embedded_docs(rows: datasets.Dataset) -> datasets.Dataset:
    """The rows with their pictures as bytes, so that no path or URL in them is opened."""
    return embedded(rows, f"the data set in {data_path()}")


def target(doc: Doc) -> str:
    """The correct first word."""
    return CHOICES[_choice(doc)]


def _choice(doc: Doc) -> int:
    """Index of the correct answer in ``CHOICES``."""
    return CHOICES.index("Yes" if doc["label"] == FAKE else "No")


def regions_target(doc: Doc) -> str:
    """The forged regions in words."""
    return templates.join_regions(doc["regions"]) if _regions(doc) else "nowhere"


def detect_text(doc: Doc, wording: Mapping[str, Any] | None = None) -> str:
    """Task description and question, as in training except for the detector's result.

    Args:
        doc: Not used: the question is the same for every image.
        wording: ``question`` replaces the question; ``ask`` is appended, for models that do not
            know the form of the answer.
    """
    wording = wording or {}
    text = detection_prompt(question=wording.get("question"))
    return f"{text} {wording.get('ask') or ''}".strip()


def multiturn_text(
    doc: Doc,
    lmms_eval_specific_kwargs: Mapping[str, Any] | None = None,
    previous_output: Sequence[str] | None = None,
    round_idx: int | None = None,
    previous_round_info: Any = None,
) -> str | tuple:
    """The first question, or the next one after an answer.

    The second question includes the dialogue so far in one text, as most models of lmms-eval do not
    take dialogues.

    Returns:
        The text in the first round. Later lmms-eval's five values: pictures (None keeps them),
        text, whether the dialogue is over, answers, state. The last answer holds all of them as
        JSON.
    """
    wording = lmms_eval_specific_kwargs or {}
    first = detect_text(doc, wording)
    if not round_idx:
        return first
    answers = [read_report(text).text for text in previous_output]
    if round_idx > 1:
        return None, None, True, [*previous_output[:-1], json.dumps(answers)], None
    second = f"{templates.WHERE.questions[0]} {wording.get('ask_where') or ''}".strip()
    text = write_transcript([first, answers[0], second])
    return None, text, False, list(previous_output), None


def forged_alone(rows: datasets.Dataset) -> datasets.Dataset:
    """The rows of :func:`embedded_docs` whose forged regions are known.

    Raises:
        ValueError: There are none.
    """
    known = rows["regions"] if "regions" in rows.column_names else [()] * len(rows)
    places = [i for i, label in enumerate(rows["label"]) if label == FAKE and known[i]]
    if not places:
        raise ValueError("no image of this data has the names of its forged regions")
    return embedded_docs(rows).select(places)


def process_detect(doc: Doc, results: Sequence[str]) -> dict[str, Record]:
    """The record of a generated verdict, for each metric."""
    report = read_report(results[0])
    label, predicted = int(doc["label"]), parse_answer(report.text).label
    p_yes = report.p_yes
    if p_yes is None:
        # Only words: certain of what they say, and wrong if they say nothing.
        p_yes = float(_opposite(label) if predicted is None else predicted)
    record = _verdict(doc, predicted, p_yes)
    record["from_likelihood"] = report.p_yes is not None
    names = ["video_auc", "video_ap", "auc", "ap", "unparsed", "p_yes_from_likelihood"]
    if report.score is not None:
        record["kfd_score"], record["kfd_fake_from"] = report.score, report.fake_from
        names += ["kfd_video_auc", "kfd_auc", "agreement"]
    return {**dict.fromkeys(names, record), **_correct(record)}


def process_likelihood(doc: Doc, results: Sequence[Any]) -> dict[str, Record]:
    """The record of a verdict from the losses of "Yes" and "No", for each metric."""
    yes, no = (_loss(result) for result in results)
    # In terms of tanh, which does not overflow.
    p_yes = 0.5 * (1 + math.tanh((no - yes) / 2))
    record = _verdict(doc, FAKE if p_yes >= 0.5 else REAL, p_yes)
    return {**dict.fromkeys(("video_auc", "video_ap", "auc", "ap"), record), **_correct(record)}


def process_regions(doc: Doc, results: Sequence[str]) -> dict[str, Record]:
    """The record of named regions, for each metric."""
    text = read_report(results[0]).text
    return _named(doc, text)


def process_multiturn(doc: Doc, results: Sequence[Any]) -> dict[str, Record]:
    """The record of a dialogue, for each metric."""
    said = json.loads(results[0]) if isinstance(results[0], str) else list(results[0])
    first, second = (read_report(text).text for text in said)
    verdict, place = parse_answer(first), parse_place(second)
    record = _verdict(doc, verdict.label, None)
    record["consistent"] = turns_agree(verdict, place)
    record["answers"] = [first, second]
    found = {"consistency": record, "unparsed": record, **_correct(record)}
    if doc["label"] == FAKE and _regions(doc):
        found |= _named(doc, second)
    else:
        found["unparsed_where"] = _place_record(doc, second)
    return found


def _ranking(
    measure: Callable[..., float], name: str, videos: bool, of: str
) -> Callable[[Sequence[Record]], float | None]:
    def rank(records: Sequence[Record]) -> float | None:
        columns = (_column(records, "label"), _column(records, name))
        try:
            return measure(*(_videos(records, name) if videos else columns))
        except OneClassError as error:
            # For example the first images of a sorted set; the other figures must not be lost.
            logger.warning("%s; it is left empty", error)
            return None

    rank.__doc__ = f"{of}; None where one class is missing."
    return rank


video_auc = _ranking(metrics.auc, "p_yes", True, "AUC of the videos' mean P(yes)")
video_ap = _ranking(
    metrics.average_precision, "p_yes", True, "Average precision of the videos' mean P(yes)"
)
frame_auc = _ranking(metrics.auc, "p_yes", False, "AUC of the images' P(yes)")
frame_ap = _ranking(
    metrics.average_precision, "p_yes", False, "Average precision of the images' P(yes)"
)
kfd_video_auc = _ranking(metrics.auc, "kfd_score", True, "AUC of the videos' mean detector score")
kfd_auc = _ranking(metrics.auc, "kfd_score", False, "AUC of the detector's scores")


def agreement(records: Sequence[Record]) -> float:
    """Share of images of which score and P(yes) say the same, each by its threshold."""
    (fake_from,) = set(_column(records, "kfd_fake_from"))
    return metrics.agreement(_column(records, "kfd_score"), _column(records, "p_yes"), fake_from)


def accuracy(records: Sequence[Record]) -> float:
    """Share of correct verdicts; answers that cannot be parsed are wrong."""
    return metrics.accuracy(_column(records, "label"), _column(records, "predicted"))


def unparsed(records: Sequence[Record]) -> int:
    """Number of answers that could not be parsed."""
    return sum(predicted is None for predicted in _column(records, "predicted"))


def p_yes_from_likelihood(records: Sequence[Record]) -> float:
    """Share of images whose P(yes) is a likelihood; that of others is derived from the words."""
    return float(np.mean(_column(records, "from_likelihood")))


def consistency(records: Sequence[Record]) -> float:
    """Share of dialogues whose two answers are consistent."""
    return float(np.mean(_column(records, "consistent")))


def _region_metric(name: str) -> Callable[[Sequence[Record]], float]:
    def of(records: Sequence[Record]) -> float:
        scores = metrics.region_scores(_column(records, "named"), _column(records, "regions"))
        return getattr(scores, name)

    of.__doc__ = f"{name.capitalize()} of the named regions, over the forged images."
    return of


regions_precision = _region_metric("precision")
regions_recall = _region_metric("recall")
regions_f1 = _region_metric("f1")


def _verdict(doc: Doc, predicted: int | None, p_yes: float | None) -> Record:
    return {
        "label": int(doc["label"]),
        "video_id": doc["video_id"],
        "predicted": predicted,
        "p_yes": p_yes,
    }


def _correct(record: Record) -> dict[str, Record]:
    """The record for accuracy only: with "correct", lmms-eval gives a standard error."""
    return {"accuracy": {**record, "correct": int(record["predicted"] == record["label"])}}


def _named(doc: Doc, text: str) -> dict[str, Record]:
    names = ("regions_precision", "regions_recall", "regions_f1", "unparsed_where")
    return dict.fromkeys(names, _place_record(doc, text))


def _place_record(doc: Doc, text: str) -> Record:
    place = parse_place(text)
    return {"named": list(place.regions), "regions": _regions(doc), "predicted": place.label}


def _regions(doc: Doc) -> list[str]:
    return list(doc.get("regions") or ())


def _opposite(label: int) -> int:
    return REAL if label == FAKE else FAKE


def _loss(result: Any) -> float:
    """The loss of one answer; lmms-eval 0.7.3 turns the pair (loss, greedy) into its text."""
    if isinstance(result, str):
        return float(result.strip("()[] ").split(",")[0])
    return float(result[0])


def _column(records: Sequence[Record], name: str) -> list[Any]:
    return [record[name] for record in records]


def _videos(records: Sequence[Record], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores of the videos."""
    videos = metrics.video_level(
        _column(records, name), _column(records, "video_id"), _column(records, "label")
    )
    return videos.labels, videos.scores
