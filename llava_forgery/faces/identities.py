"""The person in each file, and the people held out for testing."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from pathlib import Path, PurePosixPath
from unicodedata import normalize

import numpy as np

from llava_forgery.tables import read_table


def split_identities(
    identities: Iterable[str], test_share: float, seed: int, val_share: float = 0.0
) -> dict[str, str]:
    """Assign each identity to a split. The test split does not depend on ``val_share``.

    Args:
        identities: Names; repetitions count once, and the order does not matter.
        test_share: Share of the identities for ``"test"``, rounded; at least one if above 0.
        seed: Seed of the shuffle.
        val_share: Share of the identities for ``"val"``, rounded; at least one if above 0.

    Raises:
        ValueError: There are too few identities for the shares, with none left for training.
    """
    names = sorted(set(identities))
    n_test, n_val = (
        max(1, round(share * len(names))) if share > 0 else 0 for share in (test_share, val_share)
    )
    if n_test + n_val and n_test + n_val >= len(names):
        raise ValueError(
            f"a test share of {test_share} and a val share of {val_share} need at least one "
            f"identity each and one left to train on, got {len(names)}; add people, lower the "
            "shares, or set them to 0"
        )
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    splits = dict.fromkeys(order[:n_test], "test") | dict.fromkeys(
        order[n_test : n_test + n_val], "val"
    )
    return {name: splits.get(name, "train") for name in names}


def identity_digest(identity: str) -> str:
    """A name as recorded in models: 16 hexadecimal digits of the SHA-256 of its NFC form.

    Models record by these whom they were trained on, without listing names.
    """
    return hashlib.sha256(normalize("NFC", identity).encode()).hexdigest()[:16]


def identity_digests(identities: Iterable[str | None]) -> frozenset[str]:
    """:func:`identity_digest` of each name without duplicates; None, for unknown, is skipped."""
    return frozenset(identity_digest(name) for name in set(identities) if name is not None)


def check_held_out(training: Set[str], held_out: Set[str]) -> None:
    """Check that nobody in validation is also in training.

    Args:
        training: Digests of the people who are trained on.
        held_out: Digests of the people who are validated on.

    Raises:
        ValueError: A person is in both.
    """
    if seen := training & held_out:
        raise ValueError(
            f"{len(seen)} of {len(held_out)} people who are validated on are trained on as well; "
            "keep each person in one split (data prepare --val-share)"
        )


def identities_from_csv(files: Sequence[str], path: Path) -> dict[str, str]:
    """Look up the identities of files in a CSV.

    Args:
        files: Paths relative to the prepared folder.
        path: CSV with the columns ``file`` and ``identity``.

    Returns:
        The identity of each file.

    Raises:
        FileNotFoundError: There is no such CSV.
        ValueError: The CSV lacks a column or a file, gives a file two identities, or is not UTF-8.
    """
    known: dict[str, str] = {}
    for where, row in read_table(path, ("file", "identity")):
        file, identity = _composed(row["file"].replace("\\", "/")), _composed(row["identity"])
        if not file or not identity:
            raise ValueError(f"{where}: file or identity is empty")
        if known.setdefault(file, identity) != identity:
            raise ValueError(f"{where} gives {file} the identities {known[file]} and {identity}")
    missing = [file for file in files if _composed(file) not in known]
    if missing:
        raise ValueError(
            f"{path} has no identity for {missing[0]} ({len(missing)} of {len(files)} files are "
            "missing in it); the column file holds paths relative to the folder of photographs"
        )
    return {file: known[_composed(file)] for file in files}


def identities_from_pattern(files: Sequence[str], pattern: str) -> dict[str, str]:
    """Take identities from file names.

    Args:
        files: Paths relative to the prepared folder.
        pattern: Regular expression; the identity is its group named ``identity``, or its first. If
            it contains a slash, it is searched in the path, otherwise in the name.

    Returns:
        The identity of each file.

    Raises:
        ValueError: The pattern is not a regular expression, has no group, or does not match a file.
    """
    try:
        expression = re.compile(_composed(pattern))
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
        match = expression.search(_composed(file if "/" in pattern else PurePosixPath(file).name))
        if match is None or not match[group]:
            raise ValueError(
                f"identity_pattern {pattern!r} finds no identity in {file}; change the pattern, or "
                "remove the file from the folder"
            )
        identities[file] = match[group]
    return identities


def identities_from_files(files: Sequence[str]) -> dict[str, str]:
    """One identity per file: its path without the suffix.

    If two files only differ by their suffix, such as ``a.jpg`` and ``a.png``, they keep it.
    """
    bare = {file: str(PurePosixPath(file).with_suffix("")) for file in files}
    count = Counter(bare.values())
    return {file: name if count[name] == 1 else file for file, name in bare.items()}


def _composed(text: str) -> str:
    """Normalise accented letters to NFC, since some systems write file names in NFD."""
    return normalize("NFC", text)
