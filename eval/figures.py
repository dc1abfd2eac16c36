"""The measured figures of the pages, from their records.

    python -m eval.figures

prints the table of README and docs/figures.md, of the shipped model, and the papers' tables of
eval/README.md; a test compares them.
"""

from pathlib import Path
from typing import Any

from eval.papers.table_files import overview_lines
from eval.papers.tables import TableEntry
from llava_forgery.files import read_json

RECORDS = Path(__file__).parent / "records/default"
TABLES = Path(__file__).parent / "records/tables"
SETS = ("ff_c23", "ff_c40", "dfd")
TALK = "talk"
METHODS = ("Deepfakes", "FaceSwap", "FaceShifter", "NeuralTextures", "Face2Face")
WHOLE = "SadTalker"


def figures_table() -> str:
    """The rows as Markdown."""
    real = read_json(RECORDS / "real.json")
    calibration = read_json(RECORDS / "calibration.json")
    simulated = read_json(RECORDS / "simulated.json")
    rows = {(r["set"], r["method"]): r for r in real["rows"] if r["score"] == "kfd"}
    first, *others, talk = (rows[name, "all"] for name in (*SETS, TALK))
    methods = [rows[SETS[0], name] for name in METHODS]
    whole = rows[TALK, WHOLE]
    c40, dfd = others
    lines = [
        ("what", "on what", "figure"),
        ("---",) * 3,
        (
            "AUC of videos, real forgeries",
            f"FaceForensics++ c23 ({first['real_videos']} real, {first['fake_videos']} forged "
            f"videos), c40 ({_videos(c40)}), DeepFakeDetection ({_videos(dfd)})",
            ", ".join(_auc(row) for row in (first, *others)),
        ),
        (
            "real frames called fake, forged frames missed, at the shipped threshold",
            f"the same; talking heads ({_videos(talk)})",
            ", ".join(_errors(row) for row in (first, *others)) + f"; {_errors(talk)}",
        ),
        (
            "by method, AUC of videos at c23",
            f"{', '.join(METHODS)} ({methods[0]['fake_videos']} each)",
            ", ".join(_auc(row) for row in methods),
        ),
        (
            "heads generated as a whole, AUC",
            f"{WHOLE} ({whole['fake_videos']})",
            f"{_auc(whole)}: outside its scope",
        ),
        (
            "calibration (ECE, cross-fitted)",
            f"*simulated* forgeries of {calibration['people']} unseen people through video "
            "compression",
            f"{calibration['ece_after']:.3f}, from {calibration['ece_before']:.3f}",
        ),
        (
            "detector, answers: AUC; named regions: F1",
            f"{simulated['images']} *simulated* images of unseen people",
            f"{simulated['kfd']['auc']:.3f}, {simulated['text']['auc']:.3f}; "
            f"{simulated['regions_f1']:.2f}",
        ),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace(
        "| --- | --- | --- |", "|---|---|---|"
    )


def papers_tables() -> dict[str, str]:
    """Each table's name and its overview as Markdown: AUC, mean and deviation over seeds, interval.

    A table that the repository has no record of is left out.
    """
    tables = {}
    for file in sorted(TABLES.glob("*.json")):
        record = read_json(file)
        entries = [
            TableEntry(**{**entry, "values": {int(s): v for s, v in entry["values"].items()}})
            for entry in record["entries"]
        ]
        tables[file.stem] = "\n".join(overview_lines(entries, "AUC"))
    return tables


def _videos(row: dict[str, Any]) -> str:
    return f"{row['real_videos']}, {row['fake_videos']}"


def _auc(row: dict[str, Any]) -> str:
    return f"{row['video_auc']:.2f}"


def _errors(row: dict[str, Any]) -> str:
    return f"{100 * row['fpr']:.0f} % and {100 * row['fnr']:.0f} %"


if __name__ == "__main__":
    print(figures_table())
    for name, table in papers_tables().items():
        print(f"\n{name}\n\n{table}")
