"""Strict reading and writing of tensors: expected names, shapes and types, and finite values."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from llava_forgery.files import atomic_path, some_names

# Maximum length of a name in a message, in characters.
_LONGEST = 100


def save_tensors(path: str | PathLike, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as safetensors, atomically.

    Raises:
        ValueError: A value is not finite.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    broken = _not_finite(plain)
    if broken:
        raise ValueError(
            f"{path} was not written: {len(broken)} of {len(plain)} tensors hold NaN or infinite "
            f"values ({_listed(broken)}); if training diverged, lower its learning rate"
        )
    with atomic_path(path) as temporary:
        save_file(plain, temporary)


def read_tensors(path: str | PathLike) -> dict[str, torch.Tensor]:
    """Read a safetensors file, to be checked with :func:`compare_tensors`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is cut off, or not safetensors.
    """
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@contextmanager
def open_tensors(path: str | PathLike) -> Iterator[Any]:
    """A safetensors file, to read some of its tensors; raises as :func:`read_tensors`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the folder is not complete")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}): it was cut off or is damaged; copy "
            "or download it again"
        ) from error


def load_tensors(
    path: str | PathLike, expected: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Read safetensors that hold exactly the expected names, shapes and kinds of numbers.

    Args:
        path: File to read.
        expected: Tensors of the expected shapes by name; their types say whether floating-point
            numbers or integers are expected.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: As for :func:`read_tensors` and :func:`compare_tensors`.
    """
    tensors = read_tensors(path)
    compare_tensors(tensors, expected, str(path))
    return tensors


def compare_tensors(
    tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], source: str
) -> None:
    """Check tensors like :func:`load_tensors`.

    Raises:
        ValueError: Names are missing or unknown, or a tensor differs in shape or kind of numbers,
            or has values that are not finite. The message counts them and names some.
    """
    missing = [name for name in expected if name not in tensors]
    unknown = [name for name in tensors if name not in expected]
    common = [(name, tensors[name], expected[name]) for name in expected if name in tensors]
    problems = []
    renamed = _changed_prefix(unknown, missing)
    if renamed is not None:
        count, found, wanted = renamed
        problems.append(
            f"{count} of its {len(tensors)} names begin with {_short(found)!r}, expected "
            f"{_short(wanted)!r}: it was saved from another class of model, or with another "
            "version of peft or transformers"
        )
    if len(missing) > (renamed[0] if renamed else 0):
        problems.append(f"missing {_listed(missing)}")
    if len(unknown) > (renamed[0] if renamed else 0):
        problems.append(f"unknown {_listed(unknown)}")
    shapes = [
        f"{_short(name)} has shape {tuple(one.shape)}, expected {tuple(two.shape)}"
        for name, one, two in common
        if one.shape != two.shape
    ]
    kinds = [
        f"{_short(name)} is {str(one.dtype).removeprefix('torch.')}, expected "
        f"{'floating-point numbers' if two.is_floating_point() else 'integers'}"
        for name, one, two in common
        if one.is_floating_point() != two.is_floating_point()
    ]
    for sentences in filter(None, (shapes, kinds)):
        more = f" (and {len(sentences) - 1} more like it)" if len(sentences) > 1 else ""
        problems.append(sentences[0] + more)
    if problems:
        raise ValueError(
            f"{source} does not fit: {'; '.join(problems)}; give the file that was saved for this "
            "model"
        )
    broken = _not_finite(tensors)
    if broken:
        raise ValueError(
            f"{source} holds NaN or infinite values in {len(broken)} of {len(tensors)} tensors, "
            f"expected finite ones: {_listed(broken)}; the file is damaged or its training "
            "diverged, so use another checkpoint"
        )


def _not_finite(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors with NaN or infinite values."""
    return [
        name
        for name, tensor in tensors.items()
        # float(), as 8-bit numbers do not support the test.
        if tensor.is_floating_point()
        and not bool(torch.isfinite(tensor if tensor.itemsize > 1 else tensor.float()).all())
    ]


def _changed_prefix(unknown: Sequence[str], missing: Sequence[str]) -> tuple[int, str, str] | None:
    """Number of unknown names that are missing ones with another prefix, and both prefixes.

    None if that explains fewer than half of them.
    """
    prefixes = {tail: prefix for name in missing for prefix, tail in _cuts(name)}
    changes: Counter[tuple[str, str]] = Counter()
    for name in unknown:
        # The longest common suffix.
        found = next(((p, prefixes[t]) for p, t in _cuts(name) if t in prefixes), None)
        if found is not None:
            changes[found] += 1
    if not changes:
        return None
    (found, wanted), count = changes.most_common(1)[0]
    return (count, found, wanted) if 2 * count >= len(missing) and count > 1 else None


def _cuts(name: str) -> list[tuple[str, str]]:
    """All splits of a name at a dot, the longest suffix first."""
    places = [0] + [i + 1 for i, letter in enumerate(name) if letter == "."]
    return [(name[:i], name[i:]) for i in places]


def _listed(names: Sequence[str]) -> str:
    return some_names([_short(name) for name in names])


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[:50]}...{name[-47:]}"
