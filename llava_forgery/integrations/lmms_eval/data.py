"""Location of the tasks' data, from an environment variable.

lmms-eval has no argument for it; its ``--config`` files can set the variable under ``env``.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets

from llava_forgery.files import parse_json
from llava_forgery.rows import embedded

VARIABLE = "LLAVA_FORGERY_EVAL_DATA"
SPLIT = "test"
NEEDED = ("image", "label", "video_id")


def data_path() -> Path:
    """The path from the environment variable.

    Raises:
        ValueError: The variable is not set.
        FileNotFoundError: There is nothing at the path.
    """
    value = os.environ.get(VARIABLE)
    if not value:
        raise ValueError(
            f"set {VARIABLE} to the data of the forgery tasks: a folder that "
            "`llava-forgery data export-eval` wrote, or a manifest (JSON lines)"
        )
    path = Path(value).resolve()
    if not path.exists():
        raise FileNotFoundError(f"{VARIABLE} names {path}, which does not exist")
    return path


def locate() -> tuple[str, dict[str, Any]]:
    """Values of the keys ``dataset_path`` and ``dataset_kwargs`` of a task.

    The data are a Hugging Face data set on disk with the split ``test``, or a manifest: a line of
    JSON for each image, ``{"image": "a.png", "label": 1, "video_id": "v1", "regions": ["nose"]}``,
    with paths relative to the manifest; ``regions`` is optional.

    Raises:
        ValueError: The variable is not set, the data lack a split or a column, or rows contain
            paths of pictures instead of pictures.
        FileNotFoundError: There is nothing at the path.
    """
    path = data_path()
    if path.is_file():
        _check_columns(_manifest_columns(path), path)
        return "json", {"data_files": {SPLIT: str(path)}}
    if not (path / "dataset_dict.json").is_file():
        raise ValueError(
            f"{path} is no data set with the split {SPLIT!r}; make one with: llava-forgery data "
            "export-eval --faces FACES --out DATA"
        )
    found = datasets.load_from_disk(str(path))
    if SPLIT not in found:
        raise ValueError(f"{path} has the splits {', '.join(found)}, the tasks need {SPLIT!r}")
    _check_columns(found[SPLIT].column_names, path)
    embedded(found[SPLIT], str(path))
    return str(path), {"load_from_disk": True}


def _manifest_columns(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as lines:
        first = next((line for line in lines if line.strip()), "")
    row = parse_json(first, f"the first line of {path}")
    if not isinstance(row, dict):
        raise ValueError(f"{path} must hold a JSON object in each line, got {first.strip()!r}")
    return list(row)


def _check_columns(columns: Iterable[str], path: Path) -> None:
    columns = list(columns)
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; it has {', '.join(columns)}")
