"""Atomic writing, so that an interruption leaves either the old or the new file, never a part.

Also names from data: which are allowed, and where the files that they name may be.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(target: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary name next to ``target`` and rename it to ``target`` on success.

    The caller creates the file or folder at the yielded path. On an error it is removed and an
    existing ``target`` is unchanged. An existing folder is moved aside first and removed after the
    rename, since a rename cannot replace a folder that is not empty. Files and folders get the
    modes that the umask gives to new ones.

    Raises:
        FileNotFoundError: The caller wrote nothing at the yielded path.
        OSError: Writing fails, such as on a full disk; the error names the file.
    """
    target = Path(target)
    with temporary_path(target) as temporary, naming(target, temporary):
        yield temporary
        if not temporary.exists():
            raise FileNotFoundError(f"nothing was written for {target}")
        apply_umask(temporary)
        if target.is_dir() and not target.is_symlink():
            old = temporary.with_suffix(".old")
            target.rename(old)
            temporary.rename(target)
            shutil.rmtree(old)
        else:
            os.replace(temporary, target)


@contextmanager
def temporary_path(target: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary name next to ``target`` for a file or folder, which is finally removed."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(target, uuid.uuid4().hex[:8])
    try:
        yield temporary
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


@contextmanager
def naming(target: str | os.PathLike, temporary: Path | None = None) -> Iterator[None]:
    """Context in which errors of writing name the file, which the system omits for a full disk.

    Args:
        target: File or folder to write.
        temporary: Its path until it is complete.

    Raises:
        OSError: Writing failed, in whatever way a full disk was reported.
    """
    try:
        yield
    except Exception as error:
        failure = write_failure(error, target, temporary)
        if failure is None:
            raise
        raise failure from error


def write_failure(
    error: Exception, target: str | os.PathLike, temporary: Path | None = None
) -> OSError | None:
    """A failed write as an OSError that names the file; None for any other error.

    Args:
        error: Error that was raised; safetensors and torch have their own for it.
        target: File or folder that was written.
        temporary: Its path until it is complete.
    """
    target, text = Path(target), str(error)
    if type(error).__name__ == "SafetensorError" and (found := re.search(r"os error (\d+)", text)):
        return OSError(int(found[1]), os.strerror(int(found[1])), str(target))
    if isinstance(error, RuntimeError) and "inline_container" in text:
        return OSError(errno.EIO, "could not be written; is the disk full?", str(target))
    if not isinstance(error, OSError) or error.errno is None:
        return None
    if error.filename is None:
        # None of these is an error of reading, which may lack a name as well.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            return None
        return OSError(error.errno, os.strerror(error.errno), str(target))
    name = Path(os.fsdecode(error.filename))
    if temporary is not None and name.is_relative_to(temporary):
        name = target / name.relative_to(temporary)
    return OSError(error.errno, error.strerror, str(name)) if name.is_relative_to(target) else None


def sentence(error: BaseException) -> str:
    """Message of an error, in one line and without the number of system errors."""
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        name = "" if error.filename is None else f"{error.filename}: "
        return f"{name}{error.strerror}"
    return str(error)


def apply_umask(path: Path) -> None:
    """Give a file, or a folder with its content, the modes of new ones, since safetensors and
    tempfile write only for the owner, whatever the umask."""
    # The umask can only be read by setting it.
    umask = os.umask(0o077)
    os.umask(umask)
    for entry in (path, *path.rglob("*")):
        if entry.is_symlink():
            continue
        mode = entry.stat().st_mode
        wanted = mode | ((0o777 if entry.is_dir() else 0o666) & ~umask)
        if mode != wanted:
            # Some file systems have no modes.
            with suppress(PermissionError):
                entry.chmod(wanted)


def check_output(target: str | os.PathLike, inside: bool = False) -> None:
    """Check that an output can be written, before the work that produces it.

    Nothing is changed or left behind.

    Args:
        target: File or folder; it and its parents may be missing.
        inside: Whether files are written into the folder. Otherwise the target is written next to
            itself and renamed, as in :func:`atomic_path`.

    Raises:
        OSError: The output cannot be written; the message names it.
        ValueError: Files are to be written into something that is a file.
    """
    target = Path(target)
    place = target if inside else _temporary(target, "0" * 8)
    try:
        if inside and target.is_file():
            raise ValueError(
                f"{target} is a file, expected a folder to write to; give another --out"
            )
        while not _exists(place):
            place = place.parent
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(bytes(4096))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error


def _exists(path: Path) -> bool:
    """As ``Path.exists``, which treats a path below a file as merely missing."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


def _temporary(target: Path, tag: str) -> Path:
    return target.with_name(f".{target.name}.{tag}.tmp")


def check_output_folder(
    target: str | os.PathLike, *markers: str, entries: Collection[str] | None = None
) -> None:
    """Refuse to replace a folder as a whole unless an earlier call has written it.

    To be called before anything is loaded or computed. It changes nothing, but checks that the
    folder can be written.

    Args:
        target: Output folder.
        markers: Files or folders that every folder of this kind holds, and hardly any other.
        entries: All names that such a folder may hold; None allows any besides the markers.

    Raises:
        OSError: Nothing can be written next to it.
        ValueError: There is a file, or a folder that holds anything else.
    """
    target = Path(target)
    check_output(target)
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file, expected a folder to write to; give another --out")
    present = {path.name for path in target.iterdir()} if target.is_dir() else set()
    if not present:
        return
    missing = [marker for marker in markers if not (target / marker).exists()]
    if missing:
        raise ValueError(
            f"{target} exists and holds no {missing[0]}: it would be replaced, but its content "
            f"({some_names(present)}) is not an earlier output of this; give another --out"
        )
    foreign = present - set(entries) if entries is not None else set()
    if foreign:
        raise ValueError(
            f"{target} would be replaced, but besides an earlier output it holds "
            f"{some_names(foreign)}; move that away, or give another --out"
        )


def some_names(names: Collection[str]) -> str:
    """The first three names and the number of the others."""
    first = ", ".join(sorted(names)[:3])
    return first + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def remove_leftovers(target: str | os.PathLike) -> None:
    """Remove leftovers of :func:`atomic_path` for ``target`` from a killed process.

    These are next to it and, if it is a folder, leftovers of the files in it. An output that was
    moved aside without being replaced is restored.
    """
    target = Path(target)
    if target.parent.is_dir():
        _remove_leftovers(target.parent, re.escape(target.name))
    if target.is_dir():
        _remove_leftovers(target, ".+")


def _remove_leftovers(folder: Path, name: str) -> None:
    pattern = re.compile(rf"\.({name})\.[0-9a-f]{{8}}\.(?:tmp|old)")
    for path in sorted(folder.iterdir()):
        found = pattern.fullmatch(path.name)
        if not found:
            continue
        original = folder / found.group(1)
        if path.suffix == ".old" and not original.exists():
            path.rename(original)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def to_json(value: Any, **options: Any) -> str:
    """Values as JSON, which does not support NaN and infinity.

    Args:
        value: Plain values; None for undefined figures.
        options: Options of ``json.dumps``, such as ``indent``.

    Raises:
        ValueError: A number is not finite.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False, **options)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write JSON atomically, indented by two spaces; NaN and infinity are refused."""
    write_text(path, to_json(value, indent=2) + "\n")


def write_json_lines(path: str | os.PathLike, values: Iterable[Any]) -> None:
    """Write values atomically, one line of JSON each; NaN and infinity are refused."""
    write_text(path, "".join(to_json(value) + "\n" for value in values))


# An empty part, one or two full stops; a drive; a backslash, control characters and surrogates,
# which are invalid in UTF-8.
_NO_NAME = re.compile(r"(?:^|/)\.{0,2}(?:/|$)|^[A-Za-z]:|[\\\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def is_name(text: Any) -> bool:
    """Whether a text from data may be used as the path of a file below a folder, on any system.

    It must be a relative path with forward slashes, such as ``c23/000_003``, without parts that are
    empty, ``.`` or ``..``, and without backslashes, drives and control characters.
    """
    return isinstance(text, str) and not _NO_NAME.search(text)


def check_name(text: Any, what: str) -> None:
    """Refuse texts that :func:`is_name` does not allow.

    Raises:
        ValueError: The text is not allowed; the message calls it ``what``.
    """
    if not is_name(text):
        raise ValueError(
            f"{what} must be a name such as '000_003' or 'c23/000_003': relative, without '..', "
            f"backslashes and control characters; got {text!r}"
        )


def contained(folder: str | os.PathLike, name: str) -> Path:
    """The path of a file named by data, if it is below a folder.

    Only the names are checked: a link in the folder that leads out of it is its owner's choice.

    Args:
        folder: Folder that must contain the file.
        name: Path relative to the folder, or an absolute one.

    Returns:
        The folder joined with the rest of the path, without ``.`` and ``..``.

    Raises:
        ValueError: The path is elsewhere.
    """
    base = os.path.abspath(folder)
    inner = os.path.relpath(os.path.join(base, name), base)
    if inner.split(os.sep)[0] == os.pardir or "\0" in name:
        raise ValueError(f"the path {name!r} leads out of {folder}")
    return Path(folder) / inner


def changed_setting(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Message about a setting of an interrupted run that differs; None if all are equal.

    Args:
        before: Settings read from JSON.
        now: Current settings, JSON-serializable.
    """
    now = json.loads(json.dumps(now))
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            return f"{name} was {before.get(name)!r}, now {now.get(name)!r}"
    return None


def portable_name(name: str, directory: str | os.PathLike) -> str:
    """A local folder as a path relative to ``directory``, so that both can be moved together.

    Args:
        name: A folder; anything else, such as a hub name, is returned unchanged.
        directory: Folder whose files will contain the name.
    """
    if name and Path(name).is_dir():
        return os.path.relpath(Path(name).resolve(), Path(directory).resolve())
    return name


def resolve_name(name: str, directory: str | os.PathLike) -> str:
    """The inverse of :func:`portable_name`: a folder relative to ``directory``, if it exists."""
    beside = Path(directory) / name
    return str(beside.resolve()) if name and beside.is_dir() else name


def refuse_constant(constant: str) -> None:
    """``parse_constant`` of a JSON decoder, called for NaN and infinities."""
    raise ValueError(f"{constant} is not a number; use null for undefined values")


def parse_json(text: str | bytes, source: str) -> Any:
    """The inverse of :func:`to_json`.

    Args:
        text: JSON text.
        source: Origin of the text for the message.

    Raises:
        ValueError: The text is not JSON, or holds NaN or infinity, which Python's reader accepts.
    """
    try:
        return json.loads(text, parse_constant=refuse_constant)
    except ValueError as error:
        raise ValueError(f"{source} is not valid JSON: {error}") from error


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: The file is not JSON; the message names it.
    """
    return parse_json(Path(path).read_bytes(), str(path))


def read_json_lines(path: str | os.PathLike) -> list[Any]:
    """The inverse of :func:`write_json_lines`.

    Raises:
        ValueError: A line is not JSON; the message names file and line.
    """
    lines = Path(path).read_bytes().splitlines()
    return [parse_json(line, f"{path}, line {i}") for i, line in enumerate(lines, start=1)]


def fingerprint_of(*parts: Any) -> str:
    """Digest of JSON-serializable values; others are represented by their text."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
