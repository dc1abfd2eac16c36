"""The main figures of ``eval run`` as a Markdown table; all figures are in ``metrics.json``."""

from typing import Any

TITLES = {"kfd": "detector", "text": "answer", "text_uncited": "answer, score not cited"}
COLUMNS = ("auc", "ap", "eer", "tpr_at_fpr_1", "fpr", "fnr", "ece")
_HEADINGS = ("AUC", "AP", "EER", "TPR at 1 % FPR", "FPR", "FNR", "ECE")


def summary_table(metrics: dict[str, Any]) -> str:
    """A human-readable table of the figures.

    Args:
        metrics: Return value of :func:`~llava_forgery.evaluation.labelled.evaluate_labelled` or
            :func:`~llava_forgery.evaluation.simulated.evaluate_simulated`.
    """
    return _labelled(metrics) if "pooling" in metrics else _simulated(metrics)


def _labelled(metrics: dict[str, Any]) -> str:
    lines = [_row(["score", "of", "real / fake", *_HEADINGS]), _row(["---"] * 10)]
    for name, title in TITLES.items():
        if name not in metrics:
            continue
        for level in ("frame", "video"):
            figures = metrics[name][level]
            count = f"{figures['real']} / {figures['fake']}"
            lines.append(_row([title, f"{level}s", count, *_cells(figures)]))
        for group in metrics[name]["methods"]:
            count = f"{group['real']} / {group['fake']}"
            lines.append(_row([title, f"videos, {group['group']}", count, *_cells(group)]))
    return "\n".join([*lines, *_groups(metrics), "", *_sentences(metrics)]) + "\n"


def _simulated(metrics: dict[str, Any]) -> str:
    web = metrics.get("web", {})
    rows = [
        (f"{title}: {heading}", metrics[name][column], web.get(name, {}).get(column))
        for name, title in TITLES.items()
        for column, heading in zip(COLUMNS, _HEADINGS, strict=True)
        if column in metrics.get(name, {})
    ]
    rows += [
        ("detector: mask IoU", metrics["kfd"]["mask_iou"], None),
        ("answer: accuracy", metrics["text"]["accuracy"], None),
        ("answer: region F1", metrics["regions_f1"], None),
        ("answers not understood", metrics["text"]["unparsed"], None),
    ]
    lines = [_row(["figure", "as forged", "as on the web"]), _row(["---"] * 3)]
    lines += [_row([name, _number(value), _number(seen)]) for name, value, seen in rows]
    return "\n".join([*lines, *_groups(metrics), "", *_sentences(metrics)]) + "\n"


def _groups(metrics: dict[str, Any]) -> list[str]:
    """A table for each attribute whose groups differ."""
    lines = []
    for attribute, tables in metrics.get("groups", {}).items():
        lines += ["", _row([attribute, "score", "real / fake", "AUC", "FPR", "95 %", "FNR"])]
        lines.append(_row(["---"] * 7))
        for name, groups in tables.items():
            for group in groups:
                title = "all" if group["group"] is None else group["group"]
                ends = group["fpr_interval"]
                lines.append(
                    _row(
                        [
                            title,
                            TITLES[name],
                            f"{group['real']} / {group['fake']}",
                            _number(group["auc"]),
                            _number(group["fpr"]),
                            "-" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}",
                            _number(group["fnr"]),
                        ]
                    )
                )
    return lines


def _sentences(metrics: dict[str, Any]) -> list[str]:
    """The sentences below the table."""
    thresholds = metrics["thresholds"]
    of = f"{metrics['images']} images of {metrics['people']} people"
    if "photographs" in metrics:
        of += f" in {metrics['photographs']} photographs"
    said = [f"{of}; fake from a score of {thresholds['fake']:.3g} on"]
    if (mask := metrics.get("mask")) is not None:
        said.append(
            f"the maps of {mask['videos']} videos with masks have IoU {mask['iou']:.3f}, region F1 "
            f"{_number(mask.get('region_f1'))}"
        )
    if "agreement" in metrics:
        said.append(
            f"detector and answer agree on {_share(metrics['agreement'])} of the images, "
            f"{_share(metrics['agreement_if_certain'])} of the certain ones; "
            f"{_share(metrics['uncertain'])} are uncertain"
        )
    return [f"{sentence}." for sentence in said]


def _cells(figures: dict[str, Any]) -> list[str]:
    return [_number(figures.get(name)) for name in COLUMNS]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
