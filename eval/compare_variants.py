"""`lite` heads and FPL against the `paper` sizes, trained the same way, over several seeds.

    python -m eval.compare_variants --faces FACES --base-model HOST --out OUT [--reduced]

FACES is a folder of prepare, HOST one such as convert small-llava writes. OUT receives variants.csv
and variants.md, which grow with every cell; the same command resumes after an interruption. Times
of each cell are printed at its end.
"""

import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from eval.papers.variant_tables import Variant, VariantSettings
from eval.papers.variants import VariantData, compare_variants
from llava_forgery.cli.app import run
from llava_forgery.cli.options import writable_folder
from llava_forgery.faces.records import load_faces

# The paper's heads work at the image's size: training them at 128 pixels takes four times as long.
REDUCED = VariantSettings(
    image_size=64,
    kfd_steps=100,
    kfd_batch_size=4,
    pairs=60,
    fpl_warmup_steps=60,
    align_batch_size=8,
    steps=20,
    batch_size=4,
    test_pairs=40,
)


def main(
    faces: Annotated[Path, typer.Option(help="Folder written by prepare.")],
    base_model: Annotated[str, typer.Option(help="Folder or hub name of the host.")],
    out: Annotated[
        Path, typer.Option(help="Folder for cells and the table.", callback=writable_folder)
    ],
    trunk_weights: Annotated[
        Path | None, typer.Option(help="Written by convert efficientnet; else a random trunk.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Such as 0,1,2.")] = "0,1,2",
    variants: Annotated[
        str,
        typer.Option(help="heads-fpl, separated by commas; lite-paper tells the two apart."),
    ] = "lite-lite,paper-paper",
    reduced: Annotated[
        bool, typer.Option("--reduced", help="Sizes for about half an hour on two cores.")
    ] = False,
    sizes: Annotated[
        str, typer.Option(help="Single sizes, as kfd_steps=50,steps=10; see VariantSettings.")
    ] = "",
    threads: Annotated[int | None, typer.Option(help="torch's CPU threads.")] = None,
) -> None:
    """Train, judge and print the table."""
    if threads is not None:
        torch.set_num_threads(threads)
    started = time.monotonic()
    settings = with_sizes(REDUCED if reduced else VariantSettings(), sizes)
    try:
        chosen = [int(seed) for seed in seeds.split(",")]
        wanted = [Variant(*name.split("-")) for name in variants.split(",")]
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"expected --seeds such as 0,1,2 and --variants such as lite-lite,paper-paper, got "
            f"{seeds!r} and {variants!r} ({error})"
        ) from error
    rows = tuple(load_faces(faces, split=split) for split in ("train", "test"))
    trunk = None if trunk_weights is None else str(trunk_weights)
    compare_variants(
        wanted, chosen, VariantData(str(faces), base_model, trunk), settings, rows, out
    )
    print((out / "variants.md").read_text(encoding="utf-8"))
    print(f"{time.monotonic() - started:.0f} s in all")


def with_sizes(settings: VariantSettings, changes: str) -> VariantSettings:
    """Settings with some sizes changed.

    Raises:
        ValueError: A name is unknown, or a value is not a whole number.
    """
    known = [f.name for f in fields(settings)]
    values = {}
    for change in filter(None, changes.split(",")):
        name, _, value = change.partition("=")
        if name not in known or not value.isdigit():
            raise ValueError(f"--sizes takes NAME=NUMBER of {', '.join(known)}, got {change!r}")
        values[name] = int(value)
    return replace(settings, **values)


if __name__ == "__main__":
    run(lambda: typer.run(main), "%(asctime)s %(message)s")
