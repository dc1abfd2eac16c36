"""A report on pictures and videos as one HTML file that needs no other: pictures are inside."""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from os import PathLike
from pathlib import Path

from PIL import Image

from llava_forgery.files import write_text
from llava_forgery.infer.batch import FileVerdicts
from llava_forgery.infer.verdict import Verdict
from llava_forgery.qa.conversation import Message

# Of a picture in the report, in pixels.
_WIDTH = 900
_QUALITY = 82

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .3rem .6rem;
border-bottom: 1px solid #ccc } img, video { max-width: 100%; height: auto }
.real { color: #00693e } .fake { color: #b00020 } .uncertain { color: #8a5a00 }
figure { margin: 1.5rem 0 } .warning { color: #8a5a00 }
"""


@dataclass(frozen=True)
class ReportEntry:
    """One file in the report."""

    result: FileVerdicts
    truth: str | None = None
    """What is known of it, such as "forged: nose"."""


def write_report(
    path: str | PathLike,
    title: str,
    about: str,
    entries: Sequence[ReportEntry],
    *,
    dialogue: Sequence[Message] = (),
    facts: Mapping[str, str] | None = None,
    video: str | PathLike | None = None,
) -> None:
    """Write the report, atomically.

    Args:
        path: The file.
        title: Of the page.
        about: What was judged, and what the figures are not.
        entries: In order; the pictures are those that the results name.
        dialogue: About one of the files.
        facts: Name to text, such as versions and thresholds.
        video: An MP4 that is shown as well.

    Raises:
        FileNotFoundError: A picture that a result names is missing.
    """
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{html.escape(about)}</p>",
        _table(entries),
        *(_figure(entry) for entry in entries if entry.result.overlay is not None),
    ]
    if video is not None:
        data = base64.b64encode(Path(video).read_bytes()).decode()
        parts += [
            f"<h2>{html.escape(Path(video).name)}</h2>",
            f'<video controls src="data:video/mp4;base64,{data}"></video>',
        ]
    if dialogue:
        parts.append("<h2>A dialogue</h2>")
        parts += [
            f"<p><b>{html.escape(said.role)}</b>: {html.escape(said.text)}</p>" for said in dialogue
        ]
    if facts:
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>"
            for name, text in facts.items()
        )
        parts.append(f"<h2>How it was made</h2><table>{rows}</table>")
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}'
        f'</title><meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f"</head><body>{''.join(parts)}</body></html>\n"
    )
    write_text(path, page)


def _table(entries: Sequence[ReportEntry]) -> str:
    head = "".join(
        f"<th>{name}</th>" for name in ("file", "known", "verdict", "score", "P(yes)", "answer")
    )
    rows = []
    for entry in entries:
        known = html.escape(entry.truth or "")
        name = html.escape(Path(entry.result.file).name)
        if entry.result.error is not None:
            error = html.escape(entry.result.error)
            rows.append(f"<tr><td>{name}</td><td>{known}</td><td colspan=4>{error}</td></tr>")
        for face in entry.result.faces:
            rows.append(f"<tr><td>{name}</td><td>{known}</td>{_cells(face)}</tr>")
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _cells(face: Verdict) -> str:
    said = "" if face.p_yes is None else f"{face.p_yes:.3f}"
    answer = html.escape(face.answer or "")
    if face.agree is False:
        answer += " (detector and answer disagree)"
    answer += "".join(f'<br><span class="warning">{html.escape(w)}</span>' for w in face.warnings)
    return (
        f'<td class="{face.band}">{face.band}</td><td>{face.score:.3f}</td><td>{said}</td>'
        f"<td>{answer}</td>"
    )


def _figure(entry: ReportEntry) -> str:
    with Image.open(entry.result.overlay) as picture:
        shown = picture.convert("RGB")
    shown.thumbnail((_WIDTH, 4 * _WIDTH))
    buffer = BytesIO()
    shown.save(buffer, "JPEG", quality=_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode()
    name = html.escape(Path(entry.result.file).name)
    caption = f"{name}: {html.escape(entry.truth)}" if entry.truth else name
    return (
        f'<figure><img alt="{name} beside its map" src="data:image/jpeg;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
