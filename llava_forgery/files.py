"""Writing so that an interruption leaves either the old file or the new one, never half of one."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(target: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary name beside ``target`` and rename it onto ``target`` on success.

    The caller makes the file or folder at the yielded path. On an error it is removed and an
    existing ``target`` stays as it was. A folder that stands in the place is moved aside first
    and removed after the rename, since no rename replaces a folder that is not empty.

    Raises:
        FileNotFoundError: The caller wrote nothing at the yielded path.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    tag = uuid.uuid4().hex[:8]
    temporary = target.with_name(f".{target.name}.{tag}.tmp")
    try:
        yield temporary
        if not temporary.exists():
            raise FileNotFoundError(f"nothing was written for {target}")
        if target.is_dir() and not target.is_symlink():
            old = target.with_name(f".{target.name}.{tag}.old")
            target.rename(old)
            temporary.rename(target)
            shutil.rmtree(old)
        else:
            os.replace(temporary, target)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def check_replaceable(target: str | os.PathLike, marker: str) -> None:
    """Refuse to replace a folder that no earlier call has written.

    Args:
        target: A folder that is to be written, and replaced as a whole if it is there.
        marker: A file or folder that every such folder holds.

    Raises:
        ValueError: There is something else.
    """
    target = Path(target)
    taken = target.is_file() or (target.is_dir() and any(target.iterdir()))
    if taken and not (target / marker).exists():
        raise ValueError(f"{target} is there and holds no {marker}; give another --out")


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write JSON atomically, indented by two spaces; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def portable_name(name: str, directory: str | os.PathLike) -> str:
    """A local folder as a path relative to ``directory``, so that both can be moved together.

    Args:
        name: A folder, or anything else, such as a hub name, which stays as it is.
        directory: The folder whose files are to hold the name.
    """
    if name and Path(name).is_dir():
        return os.path.relpath(Path(name).resolve(), Path(directory).resolve())
    return name


def resolve_name(name: str, directory: str | os.PathLike) -> str:
    """The inverse of :func:`portable_name`: a folder beside ``directory``, if there is one."""
    beside = Path(directory) / name
    return str(beside.resolve()) if name and beside.is_dir() else name


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: The file is not JSON; the message names it.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
