"""A table of a paper by the paper's own protocol, from the benchmarks' folders as downloaded.

    python -m eval.protocol table1 --protocol eval/protocols/lvlm_dfd.json \\
        --data DATA --out OUT --dry-run

The protocol names each benchmark's folder below DATA, how many frames of a video are taken, and
the settings of training. Without ``--dry-run`` faces are prepared into ``OUT/faces``,
AntifakePrompt's word is trained into ``OUT/pseudo-word``, and the table is run
(:mod:`eval.tables`); what is finished is kept. With it nothing is decoded, loaded or trained:
folders, lists and settings are read, and what would run is printed.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from eval.papers.recipes import RECIPES
from eval.papers.table_config import TablesConfig, config_from_dict, merge
from eval.papers.tables import run_table
from llava_forgery.cli.app import run
from llava_forgery.cli.options import writable_folder
from llava_forgery.constants import FAKE, LABEL_NAMES, REAL
from llava_forgery.data.labelled import LabelledFile
from llava_forgery.evaluation.pseudo_word import evaluate_pseudo_word
from llava_forgery.evaluation.records import RECORDS
from llava_forgery.faces.benchmarks.manifest import read_benchmark
from llava_forgery.faces.extract import CropSettings
from llava_forgery.faces.prepare import prepare_sources
from llava_forgery.faces.records import MANIFEST
from llava_forgery.faces.sources import MediaSource
from llava_forgery.faces.video import FrameChoice
from llava_forgery.files import read_json
from llava_forgery.hosts.pseudo_word import attach_pseudo_word
from llava_forgery.hosts.quantized import place_host
from llava_forgery.hosts.transformers.loading import load_host
from llava_forgery.train.antifake_prompt import train_pseudo_word
from llava_forgery.train.run_record import last_checkpoint, training_folder

CSV = "antifakeprompt"


@dataclass(frozen=True)
class Protocol:
    """A protocol for one table, with all paths."""

    config: TablesConfig
    sources: dict[str, list[MediaSource]]
    """By name: what is to be prepared, or, of AntifakePrompt's sets, judged as whole pictures."""
    frames: dict[str, int]
    """Of each video, by name; of sets of pictures none."""
    missing: dict[str, str]
    """By name: why a benchmark cannot be read."""
    word: dict[str, Any] | None
    """``train`` (photos) and ``host`` of the pseudo-word."""


def read_protocol(file: Path, table: str, data: Path, out: Path) -> Protocol:
    """Read a protocol and the lists of its benchmarks.

    Args:
        file: JSON: ``benchmarks`` (name to ``benchmark``, ``folder``, ``frames`` and the reader's
            ``options``), ``train`` (names of those whose real training faces are learned from),
            ``config`` (fields of :class:`~eval.papers.table_config.TablesConfig` but those two),
            ``tables`` (what differs for one) and, for AntifakePrompt, ``word``.
        table: Of ``RECIPES``.
        data: Holds the benchmarks' folders.
        out: Gets faces and models.

    Raises:
        ValueError: Unknown table, a benchmark's list is damaged, none is there, or a setting is not
            valid.
        FileNotFoundError: There is no protocol.
    """
    if table not in RECIPES:
        raise ValueError(f"unknown table {table!r}; expected one of {', '.join(RECIPES)}")
    values = read_json(file)
    tables = values.pop("tables", {})
    # One folder of faces serves all tables.
    trains = set(values["train"]).union(*(other.get("train", ()) for other in tables.values()))
    values = merge(values, tables.get(table, {}))
    found: dict[str, list[MediaSource]] = {}
    frames, missing, tests = {}, {}, {}
    for name, entry in values["benchmarks"].items():
        try:
            listed = read_benchmark(
                entry["benchmark"], data / entry["folder"], **entry.get("options", {})
            )
        except FileNotFoundError as error:
            missing[name] = str(error)
            listed = []
        if entry["benchmark"] == CSV:
            tests[name] = {"csv": str(data / entry["folder"])}
        else:
            frames[name] = entry["frames"]
            tests[name] = {"faces": str(out / "faces" / name)}
        found[name] = _needed(listed, name in trains)
    if not any(found.values()):
        raise ValueError(f"no benchmark of {file} is in {data}: {'; '.join(missing.values())}")
    word = values.get("word")
    if word is not None:
        listed = read_benchmark(CSV, data / word["train"], split="train")
        word = {"host": word["host"], "train": [_photo(source, CSV) for source in listed]}
    config = config_from_dict(
        {
            **values["config"],
            "training_sets": {name: str(out / "faces" / name) for name in values["train"]},
            "tests": tests,
            "records": {"pseudo-word": {"0": str(out / "pseudo-word/records" / RECORDS)}},
        }
    )
    return Protocol(config, found, frames, missing, word)


def _needed(sources: Iterable[MediaSource], trains: bool) -> list[MediaSource]:
    """The test, and the real files of the training where they are learned from."""
    splits = {("test", REAL), ("test", FAKE)} | ({("train", REAL)} if trains else set())
    return [source for source in sources if (source.split, source.label) in splits]


def _photo(source: MediaSource, name: str) -> LabelledFile:
    return LabelledFile(source.path, source.label, name)


def describe(protocol: Protocol, table: str) -> list[str]:
    """What would run, a line each.

    Raises:
        ValueError: A benchmark lacks real or fake test files, or real training files.
    """
    lines = []
    for name, sources in protocol.sources.items():
        if not sources:
            lines.append(f"{name}: not there: {protocol.missing[name]}")
            continue
        counts = Counter((source.split, source.label) for source in sources)
        asked = [("test", REAL), ("test", FAKE)] if name in protocol.frames else []
        asked += [("train", REAL)] if name in protocol.config.training_sets else []
        if lacking := [_kind(*kind) for kind in asked if not counts[kind]]:
            raise ValueError(f"{name} has no files for {', '.join(lacking)}")
        listed = (f"{count} {_kind(*kind)}" for kind, count in sorted(counts.items()))
        taken = f", {protocol.frames[name]} frames of each video" if name in protocol.frames else ""
        lines.append(f"{name}: {', '.join(listed)}{taken}")
    if protocol.word is not None:
        photos, host = len(protocol.word["train"]), protocol.word["host"]
        lines.append(f"pseudo-word: {photos} photos, on {host}")
    for row in RECIPES[table].rows(protocol.config):
        lines.append(f"row {row.name}: {'not run: ' + row.reason if row.reason else 'runs'}")
    return lines


def _kind(split: str, label: int) -> str:
    return f"{split} {LABEL_NAMES[label]}"


def prepare(protocol: Protocol, out: Path, workers: int) -> None:
    """Cut the faces of all benchmarks out; what is there is kept."""
    for name, frames in protocol.frames.items():
        folder = out / "faces" / name
        if protocol.sources[name] and not (folder / MANIFEST).is_file():
            settings = CropSettings(frames=FrameChoice(frames))
            prepare_sources(protocol.sources[name], folder, settings=settings, workers=workers)


def judge_with_word(protocol: Protocol, out: Path) -> None:
    """Train AntifakePrompt's word with the paper's settings and judge the sets, once."""
    records = out / "pseudo-word/records"
    if protocol.word is None or (records / RECORDS).is_file():
        return
    model, processor = load_host(Path.cwd(), protocol.word["host"])
    vlm = attach_pseudo_word(place_host(model, None), processor)
    folder = out / "pseudo-word/word"
    resume = last_checkpoint(training_folder(folder)) is not None
    train_pseudo_word(vlm, protocol.word["train"], folder, save_steps=1000, resume=resume)
    photos = [
        _photo(source, name)
        for name, sources in protocol.sources.items()
        if name not in protocol.frames
        for source in sources
    ]
    evaluate_pseudo_word(vlm, photos, records)


def main(
    table: Annotated[str, typer.Argument(help="table1 to table6, or antifakeprompt.")],
    protocol: Annotated[Path, typer.Option("--protocol", help="JSON, as in eval/protocols.")],
    data: Annotated[Path, typer.Option("--data", help="Folder of the benchmarks' folders.")],
    out: Annotated[
        Path, typer.Option("--out", help="For faces, models, table.", callback=writable_folder)
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only read the lists and print what would run.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes that look for faces.")] = 1,
) -> None:
    """Run a table by a paper's own protocol."""
    read = read_protocol(protocol, table, data, out)
    for line in describe(read, table):
        typer.echo(line, err=not dry_run)
    if dry_run:
        return
    prepare(read, out, workers)
    judge_with_word(read, out)
    run_table(table, read.config, out)
    typer.echo((out / f"{table}.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    run(lambda: typer.run(main))
