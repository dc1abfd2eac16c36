"""Who is in which file, and which people are kept for testing."""

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np


def split_identities(identities: Iterable[str], test_share: float, seed: int) -> dict[str, str]:
    """Give each identity a split.

    Args:
        identities: Names; repetitions count once, their order does not matter.
        test_share: Share that goes to ``"test"``, rounded; at least one if above 0.
        seed: Of the shuffle.

    Raises:
        ValueError: A test share, but fewer than two identities, or none left for training.
    """
    names = sorted(set(identities))
    n_test = 0
    if test_share > 0:
        n_test = max(1, round(test_share * len(names)))
        if n_test >= len(names):
            raise ValueError(
                f"a test share of {test_share} needs at least two identities and one left to "
                f"train on, got {len(names)}; add people, lower the share, or set it to 0"
            )
    order = np.random.default_rng(seed).permutation(len(names))
    test = {names[i] for i in order[:n_test]}
    return {name: "test" if name in test else "train" for name in names}


def identities_from_csv(files: Sequence[str], path: Path) -> dict[str, str]:
    """Look files up in a CSV.

    Args:
        files: Paths relative to the prepared folder.
        path: CSV with the columns ``file`` and ``identity``.

    Returns:
        The identity of each file.

    Raises:
        FileNotFoundError: There is no such CSV.
        ValueError: It lacks a column or a file, or gives a file two identities.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; expected a CSV with file,identity")
    known: dict[str, str] = {}
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        columns = reader.fieldnames or []
        if "file" not in columns or "identity" not in columns:
            raise ValueError(f"{path} must have the columns file,identity; it has {columns}")
        for row in reader:
            file = (row["file"] or "").strip().replace("\\", "/")
            identity = (row["identity"] or "").strip()
            if not file or not identity:
                raise ValueError(f"{path}, line {reader.line_num}: file or identity is empty")
            if known.setdefault(file, identity) != identity:
                raise ValueError(f"{path} gives {file} the identities {known[file]} and {identity}")
    missing = [file for file in files if file not in known]
    if missing:
        raise ValueError(
            f"{path} has no identity for {missing[0]} ({len(missing)} of {len(files)} files are "
            "missing in it); the column file holds paths relative to the folder of photographs"
        )
    return {file: known[file] for file in files}


def identities_from_pattern(files: Sequence[str], pattern: str) -> dict[str, str]:
    """Take identities from file names.

    Args:
        files: Paths relative to the prepared folder.
        pattern: Regular expression; its group named ``identity``, or else its first. With a slash
            in it, it is searched in the path, otherwise in the name.

    Returns:
        The identity of each file.

    Raises:
        ValueError: Not a regular expression, without a group, or one that a file does not match.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"identity_pattern {pattern!r} is not a regular expression: {error}"
        ) from error
    if not expression.groups:
        raise ValueError(
            f"identity_pattern {pattern!r} has no group; put the identity in parentheses, for "
            r"example '^(\d+)_'"
        )
    group = "identity" if "identity" in expression.groupindex else 1
    identities = {}
    for file in files:
        match = expression.search(file if "/" in pattern else PurePosixPath(file).name)
        if match is None or not match[group]:
            raise ValueError(
                f"identity_pattern {pattern!r} finds no identity in {file}; change the pattern, or "
                "leave the file out of the folder"
            )
        identities[file] = match[group]
    return identities
