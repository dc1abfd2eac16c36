"""A page about a scan, from its Parquet files alone: self-contained HTML without scripts."""

import base64
import heapq
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llava_forgery.files import write_text
from llava_forgery.scan.folder import RECORDS, list_shards
from llava_forgery.scan.schema import check_layout

_BINS = 20
# Rows of the tables by folder, by date and by kind of error.
_ROWS = 50
_COLUMNS = ["file", "size", "modified", "kind", "duplicate_of", "error", "score", "flagged",
            "answers", "model", "weights", "versions"]  # fmt: skip
_NAMED = 60
"""Characters by which errors of one kind are the same, once their file is taken out."""


@dataclass
class Group:
    """Files of one folder, or of one month."""

    files: int = 0
    errors: int = 0
    flagged: int = 0

    def add(self, files: int, errors: int, flagged: int) -> None:
        self.files += files
        self.errors += errors
        self.flagged += flagged


@dataclass
class Figures:
    """What a page says, summed over shards."""

    files: int = 0
    bytes: int = 0
    duplicates: int = 0
    faces: int = 0
    flagged: int = 0
    disagreements: int = 0
    kinds: Counter = field(default_factory=Counter)
    bands: Counter = field(default_factory=Counter)
    errors: Counter = field(default_factory=Counter)
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(_BINS, int))
    folders: dict[str, Group] = field(default_factory=dict)
    months: dict[str, Group] = field(default_factory=dict)
    provenance: Counter = field(default_factory=Counter)
    worst: list[tuple[float, str, int]] = field(default_factory=list)
    """Score, shard and row of the most suspicious files, the highest first."""


def write_report(folder: Path, out: Path, most: int = 60) -> Path:
    """Write the page.

    Args:
        folder: That a scan wrote, or is writing.
        out: HTML file.
        most: Faces of the contact sheet.

    Returns:
        The file.

    Raises:
        FileNotFoundError: There are no records.
        ValueError: A file is none of a scan.
        OSError: The page cannot be written.
    """
    shards = list_shards(folder)
    if not shards:
        raise FileNotFoundError(f"{folder / RECORDS} holds no records; scan something first")
    figures = Figures()
    for shard in shards:
        _add_shard(figures, shard, most)
    write_text(out, render(figures, list(_contact_sheet(figures, folder, most)), folder.name))
    return out


def _add_shard(figures: Figures, path: Path, most: int) -> None:
    with pq.ParquetFile(path) as file:
        check_layout(file.schema_arrow, str(path))
        row = 0
        for batch in file.iter_batches(4096, columns=[*_COLUMNS, *_FACE_COLUMNS]):
            _add_batch(figures, pa.Table.from_batches([batch]), path.name, row, most)
            row += batch.num_rows


_FACE_COLUMNS = ["faces.list.element.score", "faces.list.element.band", "faces.list.element.agree"]


def _add_batch(figures: Figures, rows: pa.Table, shard: str, first: int, most: int) -> None:
    figures.files += len(rows)
    figures.bytes += pc.sum(rows["size"]).as_py() or 0
    figures.duplicates += len(rows) - rows["duplicate_of"].null_count
    failed = rows["error"].is_valid().to_numpy()
    flagged = rows["flagged"].to_numpy()
    figures.flagged += int(flagged.sum())
    figures.kinds.update(rows["kind"].to_pylist())
    for error, name in zip(rows["error"].to_pylist(), rows["file"].to_pylist(), strict=True):
        if error is not None:
            figures.errors[error_kind(error, name)] += 1
    faces = pc.list_flatten(rows["faces"]).combine_chunks()
    figures.faces += len(faces)
    if len(faces):
        scores = faces.field("score").to_numpy(zero_copy_only=False)
        figures.histogram += np.histogram(scores, _BINS, (0.0, 1.0))[0]
        figures.bands.update(faces.field("band").to_pylist())
        figures.disagreements += pc.sum(pc.equal(faces.field("agree"), False)).as_py() or 0
    for name, bad, hot in zip(rows["file"].to_pylist(), failed, flagged, strict=True):
        parent = str(PurePosixPath(name).parent) if "://" not in name else name.rpartition("/")[0]
        figures.folders.setdefault(parent, Group()).add(1, int(bad), int(hot))
    months = pc.strftime(rows["modified"], "%Y-%m").fill_null("not known").to_pylist()
    for month, bad, hot in zip(months, failed, flagged, strict=True):
        figures.months.setdefault(month, Group()).add(1, int(bad), int(hot))
    names = [rows[name].to_pylist() for name in ("model", "weights", "answers", "versions")]
    figures.provenance.update(zip(*names, strict=True))
    scores = rows["score"].fill_null(-1.0).to_numpy()
    alone = rows["duplicate_of"].is_null().to_numpy()
    candidates = [(float(scores[i]), shard, first + i) for i in np.flatnonzero(flagged & alone)]
    figures.worst = heapq.nlargest(most, figures.worst + candidates)


def error_kind(error: str, file: str) -> str:
    """An error without what is particular to its file.

    Args:
        error: A record's sentence.
        file: The record's file.
    """
    name = PurePosixPath(file).name
    text = error.replace(file, "FILE").replace(name, "FILE")
    digits = "".join("#" if letter.isdigit() else letter for letter in text)
    while "##" in digits:
        digits = digits.replace("##", "#")
    return digits if len(digits) <= 2 * _NAMED else digits[: 2 * _NAMED - 1] + "…"


def _contact_sheet(figures: Figures, folder: Path, most: int) -> Iterator[Mapping[str, Any]]:
    """The worst faces with their files, as far as a picture lies in the records."""
    by_shard: dict[str, list[int]] = {}
    for _, shard, row in figures.worst:
        by_shard.setdefault(shard, []).append(row)
    found = {}
    for shard, rows in by_shard.items():
        table = pq.read_table(folder / RECORDS / shard, columns=["file", "kind", "faces"])
        for row, record in zip(rows, table.take(rows).to_pylist(), strict=True):
            found[shard, row] = record
    left = most
    for _, shard, row in figures.worst:
        record = found[shard, row]
        for face in sorted(record["faces"], key=lambda face: -face["score"]):
            if face["picture"] is not None and left:
                left -= 1
                yield {"file": record["file"], **face}


def render(figures: Figures, sheet: list[Mapping[str, Any]], title: str) -> str:
    """The page as text.

    Args:
        figures: Of the records.
        sheet: Faces with their ``file`` and ``picture``.
        title: Name of the scan.
    """
    errors = sum(figures.errors.values())
    counts = [
        ("files", figures.files), ("pictures", figures.kinds["picture"]),
        ("videos", figures.kinds["video"]), ("gigabytes", f"{figures.bytes / 1e9:.2f}"),
        ("duplicates", figures.duplicates), ("not judged", errors), ("faces", figures.faces),
        ("files flagged", figures.flagged), ("faces uncertain", figures.bands["uncertain"]),
        ("detector and answer disagree", figures.disagreements),
    ]  # fmt: skip
    tiles = "".join(
        f"<div class=tile><b>{value:,}</b>{name}</div>"
        if isinstance(value, int)
        else f"<div class=tile><b>{value}</b>{name}</div>"
        for name, value in counts
    )
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    used = "".join(
        f"<p>Model {escape(model)} (weights {escape(weights[:16])}), answers: {escape(answers)}; "
        f"{escape(versions)}: {count:,} files.</p>"
        for (model, weights, answers, versions), count in figures.provenance.most_common()
    )
    faces = "".join(_figure(face) for face in sheet) or "<p>No file is flagged.</p>"
    return f"""<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">
<title>Scan {escape(title)}</title><style>{_STYLE}</style>
<h1>Scan {escape(title)}</h1>
<p>Written {now}. A score is a detector's estimate, not proof; what is flagged is to be looked at by
people.</p>
<section class=tiles>{tiles}</section>
<h2>Scores of the faces</h2>{_histogram(figures.histogram)}
<h2>Most suspicious files</h2><section class=sheet>{faces}</section>
<h2>By folder</h2>{_groups(figures.folders, "folder", by_flagged=True)}
<h2>By month</h2>{_groups(figures.months, "modified", by_flagged=False)}
<h2>Errors by kind</h2>{_errors(figures.errors)}
<h2>What judged</h2>{used}
</html>
"""


_STYLE = """
:root{color-scheme:light dark;--line:#8886}body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;
margin:2rem auto;padding:0 1rem}h2{margin-top:2.5rem}.tiles,.sheet{display:flex;flex-wrap:wrap;gap:
.75rem}.tile{border:1px solid var(--line);border-radius:.5rem;padding:.5rem 1rem}.tile b{display:
block;font-size:1.5rem}figure{margin:0;width:256px;overflow-wrap:anywhere;font-size:.8rem}figure img
{width:256px;height:128px;display:block}table{border-collapse:collapse}td,th{padding:.2rem .8rem;
text-align:right;border-bottom:1px solid var(--line)}td:first-child,th:first-child{text-align:left;
overflow-wrap:anywhere}svg{max-width:100%;height:auto}
"""


def _figure(face: Mapping[str, Any]) -> str:
    data = base64.b64encode(face["picture"]).decode()
    said = f"score {face['score']:.3f}"
    if face["p_yes"] is not None:
        said += f", P(yes) {face['p_yes']:.3f}"
    if face["agree"] is False:
        said += " (they disagree)"
    place = "" if face["frame"] is None else f", frame {face['frame']}"
    words = f"<br>{escape(face['answer'])}" if face["answer"] else ""
    warned = f"<br>Caution: {escape('; '.join(face['warnings']))}" if face["warnings"] else ""
    return (
        f'<figure><img alt="face and map" loading=lazy src="data:image/jpeg;base64,{data}">'
        f"<figcaption><b>{said}</b>{place}<br>{escape(face['file'])}{words}{warned}</figcaption>"
        "</figure>"
    )


def _histogram(counts: np.ndarray) -> str:
    width, height, most = 30, 160, max(1, int(counts.max()))
    bars = []
    for i, count in enumerate(counts.tolist()):
        tall = round(height * count / most, 1)
        low, high = i / len(counts), (i + 1) / len(counts)
        bars.append(
            f'<rect x="{i * width + 2}" y="{height - tall}" width="{width - 4}" height="{tall}" '
            f'fill="#c60"><title>{low:.2f} to {high:.2f}: {count:,}</title></rect>'
        )
    end = width * len(counts)
    return (
        f'<svg viewBox="0 0 {end} {height + 22}" width="{end}" role=img '
        f'aria-label="histogram of scores from 0 to 1">{"".join(bars)}'
        f'<g fill="currentColor" font-size="14"><text y="{height + 18}">0 (real)</text>'
        f'<text x="{end}" y="{height + 18}" text-anchor="end">1 (fake)</text></g></svg>'
    )


def _groups(groups: Mapping[str, Group], head: str, by_flagged: bool) -> str:
    names = sorted(groups)
    if by_flagged:
        names.sort(key=lambda name: -groups[name].flagged)
    rows = [
        (name, groups[name].files, groups[name].flagged, groups[name].errors)
        for name in names[:_ROWS]
    ]
    return _table((head, "files", "flagged", "not judged"), rows, len(names))


def _errors(errors: Counter) -> str:
    if not errors:
        return "<p>Every file was judged.</p>"
    return _table(("error", "files"), errors.most_common(_ROWS), len(errors))


def _table(head: tuple[str, ...], rows: list[tuple], total: int) -> str:
    first = "".join(f"<th>{escape(name)}" for name in head)
    body = "".join(
        f"<tr><td>{escape(str(name))}" + "".join(f"<td>{value:,}" for value in values)
        for name, *values in rows
    )
    more = f"<p>{total - len(rows):,} more rows are left out.</p>" if total > len(rows) else ""
    return f"<table><tr>{first}{body}</table>{more}"
