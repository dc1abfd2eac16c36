"""Measure a detector, or a host with the skill, on face crops of real and forged videos.

    llava-forgery eval real --model MODEL --data DIR --out OUT

DIR holds ``SET/real/VIDEO_FRAME.png`` and ``SET/fake_METHOD/VIDEO_FRAME.png``: the names of one
video's frames agree up to the last underscore. ``DIR/identities.csv`` (columns ``set``,
``kind``, ``video``, ``identities``) says who is in each video; a face swap holds two people.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llava_forgery.constants import FAKE, REAL
from llava_forgery.evaluation.checks import OneClassError, same_length
from llava_forgery.evaluation.figures import COLOURS, new_figure
from llava_forgery.evaluation.intervals import PATIENCE, Interval, percentiles
from llava_forgery.evaluation.leaks import people_in_training
from llava_forgery.evaluation.metrics import auc, error_rates, tpr_at_fpr
from llava_forgery.evaluation.records import KeptRecords
from llava_forgery.evaluation.scorers import RECORD_NAMES, Scorer, named_scores
from llava_forgery.evaluation.video import video_level
from llava_forgery.faces.crop import whole_square
from llava_forgery.files import fingerprint_of, write_text
from llava_forgery.images import SUFFIXES, read_image
from llava_forgery.infer.verdict import P_YES_THRESHOLD
from llava_forgery.pooling import check_reduction
from llava_forgery.tables import read_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IDENTITIES = "identities.csv"
COLUMNS = ("set", "kind", "video", "identities")
REAL_FOLDER = "real"
FAKE_FOLDER = "fake_"
ALL = "all"
TITLES = {"kfd": "detector", "p_yes": "P(yes)", "p_yes_uncited": "P(yes), score not cited"}
HISTOGRAM_BINS = 20


@dataclass(frozen=True)
class RealFrame:
    """One face crop of a video."""

    path: str
    """Path relative to the folder of the sets."""
    set: str
    """Name of the set, such as ``ff_c23``."""
    method: str | None
    """Method of the forgery; None for a real video."""
    video: str
    """Name of the video, unique within its set and kind."""
    identities: tuple[str, ...]
    """One or more people that the video shows, by names unique within the set."""

    @property
    def label(self) -> int:
        """0 real, 1 fake."""
        return REAL if self.method is None else FAKE

    @property
    def video_id(self) -> str:
        """Id unique among all sets: two methods may use the same names of videos."""
        return f"{self.set}/{_folder(self.method)}/{self.video}"


def _folder(method: str | None) -> str:
    return REAL_FOLDER if method is None else f"{FAKE_FOLDER}{method}"


def read_real_frames(directory: str | PathLike) -> list[RealFrame]:
    """Find the frames of all sets in a folder, in the order of their paths.

    Args:
        directory: Folder laid out as the module's docstring describes.

    Raises:
        FileNotFoundError: There is no such folder, or no ``identities.csv`` in it.
        ValueError: The name of a folder or file does not follow the layout, a video is not in
            ``identities.csv``, or there are no frames.
    """
    directory = Path(directory)
    people = _read_identities(directory / IDENTITIES)
    frames = []
    for folder in sorted(directory.glob("*/*")):
        if not folder.is_dir():
            continue
        name = folder.parent.name
        method = _method(folder)
        for path in sorted(folder.iterdir()):
            video, _, frame = path.stem.rpartition("_")
            if path.suffix.lower() not in SUFFIXES or not video or not frame:
                raise ValueError(
                    f"{path} is not a face crop named VIDEO_FRAME with one of the suffixes "
                    f"{', '.join(SUFFIXES)}; cut faces out of videos with `data prepare` first"
                )
            key = (name, folder.name, video)
            if key not in people:
                raise ValueError(
                    f"{directory / IDENTITIES} has no row for {','.join(key)}, whose frames are "
                    f"in {folder}; add who is in this video"
                )
            relative = str(path.relative_to(directory))
            frames.append(RealFrame(relative, name, method, video, people[key]))
    if not frames:
        raise ValueError(f"{directory} holds no SET/{REAL_FOLDER} or SET/{FAKE_FOLDER}METHOD")
    return frames


def _method(folder: Path) -> str | None:
    """The method in a folder's name; None for real videos."""
    if folder.name == REAL_FOLDER:
        return None
    method = folder.name.removeprefix(FAKE_FOLDER)
    if method in ("", folder.name):
        raise ValueError(
            f"{folder} is neither {REAL_FOLDER!r} nor {FAKE_FOLDER}METHOD: rename or move it"
        )
    return method


def _read_identities(path: Path) -> dict[tuple[str, str, str], tuple[str, ...]]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; it says who is in each video, with the columns "
            f"{','.join(COLUMNS)} (people separated by spaces)"
        )
    people: dict[tuple[str, str, str], tuple[str, ...]] = {}
    for where, row in read_table(path, COLUMNS, ()):
        key = (row["set"], row["kind"], row["video"])
        names = tuple(row["identities"].split())
        if not names:
            raise ValueError(f"{where} names nobody for {','.join(key)}")
        if key in people:
            raise ValueError(f"{where}: a second row for {','.join(key)}")
        people[key] = names
    return people


def identity_interval(
    labels: Sequence[int],
    scores: Sequence[float],
    identities: Sequence[tuple[str, ...]],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """AUC with a bootstrap interval over people; a forgery may show two of them.

    People are drawn with replacement. A video is weighted by the product of the draws of its
    people: a swap between two people is in a resample only if both are. Source: the pigeonhole
    bootstrap, Owen 2007, *Annals of Applied Statistics* 1(2), section 3.

    Args:
        labels: (N,) of 0 and 1, both present; one for each video.
        scores: (N,) finite.
        identities: (N,) people of each video.
        resamples: Number of resamples with both classes; others are drawn again.
        confidence: Nominal coverage.
        seed: Seed of the draws.

    Raises:
        ValueError: Lengths differ, or hardly any resample holds both classes.
        OneClassError: One class is missing.
    """
    same_length(labels=labels, scores=scores, identities=identities)
    labels, scores = np.asarray(labels), np.asarray(scores)
    people = sorted({person for names in identities for person in names})
    place = {person: i for i, person in enumerate(people)}
    rows = [[place[person] for person in names] for names in identities]
    value = auc(labels, scores)
    rng = np.random.default_rng(seed)
    values: list[float] = []
    redrawn = 0
    while len(values) < resamples:
        drawn = np.bincount(rng.integers(0, len(people), len(people)), minlength=len(people))
        counts = np.array([drawn[members].prod() for members in rows])
        try:
            if not counts.any():
                raise OneClassError("the resample holds no video")
            values.append(auc(np.repeat(labels, counts), np.repeat(scores, counts)))
        except OneClassError as error:
            redrawn += 1
            if redrawn > PATIENCE * resamples:
                raise ValueError(
                    f"hardly any resample of {len(people)} people holds both classes: too few "
                    "people for an interval"
                ) from error
    low, high = percentiles(np.array(values), confidence)
    return Interval(value, float(low), float(high), confidence, resamples, redrawn, len(people))


def evaluate_real(
    scorer: Scorer,
    directory: str | PathLike,
    output_dir: str | PathLike,
    *,
    threshold: float = 0.5,
    batch_size: int = 16,
    reduce: str = "mean",
    resamples: int = 1000,
) -> dict[str, Any]:
    """Score every crop, and measure frames and videos by set and method.

    Args:
        scorer: A detector, or a host with the skill.
        directory: Folder laid out as the module's docstring describes. Crops are judged as they
            are, scaled to the scorer's size and padded if they are not square.
        output_dir: Receives ``records.jsonl`` (a line for each crop), ``metrics.json`` and
            ``table.md``. An interrupted call resumes if crops and weights are the same.
        threshold: Detector score from which a picture is called fake; P(yes) calls it fake from
            0.5 on.
        batch_size: Number of crops scored at once.
        reduce: How the frames of a video are pooled.
        resamples: Number of resamples for the intervals.

    Returns:
        The figures of :func:`summarise_real`, and ``people_in_training``; see
        :func:`~llava_forgery.evaluation.leaks.people_in_training`.

    Raises:
        FileNotFoundError: As for :func:`read_real_frames`.
        ValueError: As for :func:`read_real_frames`; a crop cannot be read; a score is not in
            [0, 1]; or an interrupted call had different settings.
    """
    check_reduction(reduce)
    frames = read_real_frames(directory)
    directory, output_dir = Path(directory), Path(output_dir)
    crops = [[asdict(frame), (directory / frame.path).stat().st_size] for frame in frames]
    settings = {"scores": scorer.names, "size": scorer.size, "crops": fingerprint_of(crops)}
    with KeptRecords(output_dir, settings, scorer.model, batch_size) as kept:
        for places in kept.batches(len(frames), "eval real"):
            batch = [frames[place] for place in places]
            pixels = [square_crop(directory / frame.path, scorer.size) for frame in batch]
            scores = named_scores(scorer, pixels)
            kept.add(
                [
                    {**asdict(frame), "label": frame.label, **own}
                    for frame, own in zip(batch, scores, strict=True)
                ]
            )
        metrics = summarise_real(
            kept.records, threshold=threshold, reduce=reduce, resamples=resamples
        )
        people = (name for frame in frames for name in frame.identities)
        metrics["people_in_training"] = people_in_training(scorer.model, people)
        write_text(output_dir / "table.md", real_table(metrics))
        kept.finish(metrics)
    return metrics


def square_crop(path: Path, size: int) -> np.ndarray:
    """A picture file as (size, size, 3) uint8, padded to a square without distortion."""
    return whole_square(read_image(path), size)


def summarise_real(
    records: Sequence[dict[str, Any]],
    *,
    threshold: float = 0.5,
    reduce: str = "mean",
    resamples: int = 1000,
) -> dict[str, Any]:
    """The figures of :func:`evaluate_real` from its records.

    Returns:
        ``threshold``, ``pooling``, ``mean_video_auc`` (for each score the mean over the sets that
        hold both classes) and ``rows``: for each score (``kfd``; with a host also
        ``p_yes``), set and method a dictionary with ``score``, ``set``, ``method`` ("all" for the
        set's methods together), counts of videos and frames, ``video_auc`` with its interval over
        people, ``frame_auc``, ``tpr_at_1_fpr`` (frames), ``fpr`` and ``fnr`` (frames, at the
        threshold), ``video_fpr``, ``video_fnr``, and ``histogram``: counts of real and fake
        frames in 20 equal bins of [0, 1]. Figures that need a class that a set lacks are None.
        The real videos of a set are compared with each of its methods.
    """
    rows = []
    sets = sorted({record["set"] for record in records})
    for name, column in RECORD_NAMES.items():
        if column not in records[0]:
            continue
        for group in sets:
            members = [record for record in records if record["set"] == group]
            methods = sorted({r["method"] for r in members if r["method"] is not None})
            for method in (ALL, *(methods if len(methods) > 1 else ())):
                chosen = [r for r in members if method == ALL or r["method"] in (None, method)]
                own = threshold if name == "kfd" else P_YES_THRESHOLD
                figures = _figures(chosen, column, own, reduce, resamples)
                about = {"score": name, "set": group, "method": method, "threshold": own}
                rows.append({**about, **figures})
    means = {
        name: float(np.mean([row["video_auc"] for row in measured]))
        for name in RECORD_NAMES
        if (measured := [r for r in rows if _is_summary(r, name)])
    }
    return {"threshold": threshold, "pooling": reduce, "mean_video_auc": means, "rows": rows}


def _is_summary(row: dict[str, Any], score: str) -> bool:
    """Whether a row summarises a whole set with both classes."""
    return (row["score"], row["method"]) == (score, ALL) and row["video_auc"] is not None


def _figures(
    records: Sequence[dict[str, Any]], column: str, threshold: float, reduce: str, resamples: int
) -> dict[str, Any]:
    labels = np.array([record["label"] for record in records])
    scores = np.array([record[column] for record in records])
    ids = [f"{r['set']}/{_folder(r['method'])}/{r['video']}" for r in records]
    people = {name: tuple(r["identities"]) for name, r in zip(ids, records, strict=True)}
    videos = video_level(scores, ids, labels, reduce)
    fpr, fnr = error_rates(labels, scores, threshold)
    video_fpr, video_fnr = error_rates(videos.labels, videos.scores, threshold)
    both = len(set(labels.tolist())) == 2
    interval = None
    if both:
        of = [people[name] for name in videos.video_ids]
        try:
            interval = identity_interval(videos.labels, videos.scores, of, resamples=resamples)
        except ValueError:
            # Too few people, such as two: the figure has no interval.
            interval = None
    return {
        "real_videos": int((videos.labels == REAL).sum()),
        "fake_videos": int((videos.labels == FAKE).sum()),
        "frames": len(records),
        "video_auc": auc(videos.labels, videos.scores) if both else None,
        "video_auc_interval": None if interval is None else interval.to_dict(),
        "frame_auc": auc(labels, scores) if both else None,
        "tpr_at_1_fpr": tpr_at_fpr(labels, scores, 0.01) if both else None,
        "fpr": fpr,
        "fnr": fnr,
        "video_fpr": video_fpr,
        "video_fnr": video_fnr,
        "histogram": {
            name: np.histogram(scores[labels == label], HISTOGRAM_BINS, (0, 1))[0].tolist()
            for name, label in (("real", REAL), ("fake", FAKE))
        },
    }


def real_table(metrics: dict[str, Any]) -> str:
    """The figures of :func:`summarise_real` as a Markdown table.

    AUC of videos has its interval over people; the other figures are of frames.
    """
    lines = [
        "| score | set | method | videos real / fake | video AUC | frame AUC | TPR at 1 % FPR "
        "| threshold | FPR | FNR |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in metrics["rows"]:
        video_auc = _number(row["video_auc"])
        if (interval := row["video_auc_interval"]) is not None:
            video_auc += f" [{interval['low']:.3f}, {interval['high']:.3f}]"
        rates = [_number(row[name]) for name in ("frame_auc", "tpr_at_1_fpr", "fpr", "fnr")]
        cells = [
            TITLES[row["score"]],
            row["set"],
            row["method"],
            f"{row['real_videos']} / {row['fake_videos']}",
            video_auc,
            *rates[:2],
            f"{row['threshold']:.3g}",
            *rates[2:],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for name, value in metrics["mean_video_auc"].items():
        lines.append(f"| {TITLES[name]} | mean of the sets | | | {value:.3f} | | | | | |")
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def real_figure(metrics: dict[str, Any]) -> "Figure":
    """Histograms of the frames' scores: a row for each score, a panel for each set.

    Raises:
        ImportError: matplotlib is missing.
    """
    rows = [row for row in metrics["rows"] if row["method"] == ALL]
    names = list(dict.fromkeys(row["score"] for row in rows))
    sets = list(dict.fromkeys(row["set"] for row in rows))
    figure = new_figure(2.8 * len(sets), 2.4 * len(names))
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    for place, row in enumerate(rows):
        axes = figure.add_subplot(len(names), len(sets), place + 1)
        for (kind, counts), colour in zip(row["histogram"].items(), COLOURS, strict=False):
            if not sum(counts):
                continue
            shares = np.array(counts) / sum(counts)
            axes.stairs(shares, edges, fill=True, alpha=0.5, color=colour, label=kind)
        axes.axvline(row["threshold"], color="grey", linestyle=":", linewidth=1)
        axes.set_title(f"{row['set']}, {TITLES[row['score']]}", fontsize=9)
        axes.set_xlabel("score", fontsize=8)
        axes.tick_params(labelsize=8)
        if place % len(sets) == 0:
            axes.set_ylabel("share of frames", fontsize=8)
        if place == 0:
            axes.legend(fontsize=8)
    return figure
