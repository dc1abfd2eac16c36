"""Writing so that an interruption leaves either the old file or the new one, never half of one.

And names that come from data: which are allowed, and where the files they name may lie.
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
    """Yield a temporary name beside ``target`` and rename it onto ``target`` on success.

    The caller makes the file or folder at the yielded path. On an error it is removed and an
    existing ``target`` stays as it was. A folder that stands in the place is moved aside first
    and removed after the rename, since no rename replaces a folder that is not empty. Files and
    folders get the modes that the umask leaves to new ones.

    Raises:
        FileNotFoundError: The caller wrote nothing at the yielded path.
        OSError: The system refuses to write, as on a full disk; it names the file.
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
    """Yield a temporary name beside ``target``, for a file or folder that is removed at the end."""
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
    """Name the file where writing fails: of a full disk, the system says no more than that.

    Args:
        target: What is written.
        temporary: Its path until it is complete.

    Raises:
        OSError: Whichever error a full disk was reported as.
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
    """A refused write as an OSError that names the file; None for any other error.

    Args:
        error: What was raised: safetensors and torch have errors of their own for it.
        target: What was written.
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
        # None of these is an error of reading, which may come without a name as well.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            return None
        return OSError(error.errno, os.strerror(error.errno), str(target))
    name = Path(os.fsdecode(error.filename))
    if temporary is not None and name.is_relative_to(temporary):
        name = target / name.relative_to(temporary)
    return OSError(error.errno, error.strerror, str(name)) if name.is_relative_to(target) else None


def sentence(error: BaseException) -> str:
    """What an error says, in one line without its number where the system raised it."""
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        name = "" if error.filename is None else f"{error.filename}: "
        return f"{name}{error.strerror}"
    return str(error)


def apply_umask(path: Path) -> None:
    """Give a file, or a folder with all in it, the modes of new ones: safetensors and tempfile
    write for their owner only, whatever the umask."""
    # It can only be read by setting it.
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
    """Try whether an output can be written, before the work that it is the output of.

    Nothing is changed, and nothing left behind.

    Args:
        target: A file, or a folder; it and folders above it may be missing.
        inside: Files are written into the folder. Otherwise the target is written beside itself
            and renamed, as :func:`atomic_path` does.

    Raises:
        OSError: It cannot be written; the message names it.
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
    """As ``Path.exists``, which takes a path below a file for one that is only missing."""
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
    """Refuse a folder that is to be replaced as a whole, where no earlier call has written it.

    To be called before anything is loaded or computed. It changes nothing, and tries to write.

    Args:
        target: The folder.
        markers: Files or folders that every folder of this kind holds, and hardly any other.
        entries: All names that such a folder may hold; None allows any beside the markers.

    Raises:
        OSError: Nothing can be written beside it.
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
            f"{target} is there and holds no {missing[0]}: it would be replaced, and what it holds "
            f"({some_names(present)}) is not an earlier output of this; give another --out"
        )
    foreign = present - set(entries) if entries is not None else set()
    if foreign:
        raise ValueError(
            f"{target} would be replaced, and beside an earlier output it holds "
            f"{some_names(foreign)}; move that away, or give another --out"
        )


def some_names(names: Collection[str]) -> str:
    """The first three names, and how many more there are."""
    first = ", ".join(sorted(names)[:3])
    return first + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def remove_leftovers(target: str | os.PathLike) -> None:
    """Remove what :func:`atomic_path` left of ``target`` where its process was killed.

    That is what lies beside it, and in a folder what is left of the files in it. An output that was
    moved aside, and whose successor never took its place, is put back.
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
    """Values as JSON, which has no word for NaN and infinity.

    Args:
        value: Plain values; None where a figure is not defined.
        options: Of ``json.dumps``, such as ``indent``.

    Raises:
        ValueError: A number is not finite.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False, **options)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write JSON atomically, indented by two spaces; NaN and infinity are refused."""
    write_text(path, to_json(value, indent=2) + "\n")


def write_json_lines(path: str | os.PathLike, values: Iterable[Any]) -> None:
    """Write values atomically, each a line of JSON; NaN and infinity are refused."""
    write_text(path, "".join(to_json(value) + "\n" for value in values))


# A part of none, one or two full stops; a drive; a backslash, control characters and surrogates,
# which are no text in UTF-8.
_NO_NAME = re.compile(r"(?:^|/)\.{0,2}(?:/|$)|^[A-Za-z]:|[\\\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def is_name(text: Any) -> bool:
    """Whether a text from data may become the path of a file below a folder, on any system.

    That is a relative path with forward slashes, such as ``c23/000_003``: with no part that is
    empty, ``.`` or ``..``, no backslash, no drive, no control character.
    """
    return isinstance(text, str) and not _NO_NAME.search(text)


def check_name(text: Any, what: str) -> None:
    """Refuse what :func:`is_name` does not allow.

    Raises:
        ValueError: The message calls it ``what``.
    """
    if not is_name(text):
        raise ValueError(
            f"{what} must be a name such as '000_003' or 'c23/000_003': relative, without '..', "
            f"backslashes and control characters; got {text!r}"
        )


def contained(folder: str | os.PathLike, name: str) -> Path:
    """The path of a file that data name, if it lies below a folder.

    The names alone decide: a link in the folder that leads out of it is its owner's choice.

    Args:
        folder: Where it must lie.
        name: A path relative to the folder, or an absolute one.

    Returns:
        The folder with the rest of the path behind it, without ``.`` and ``..``.

    Raises:
        ValueError: It lies elsewhere.
    """
    base = os.path.abspath(folder)
    inner = os.path.relpath(os.path.join(base, name), base)
    if inner.split(os.sep)[0] == os.pardir or "\0" in name:
        raise ValueError(f"the path {name!r} leads out of {folder}")
    return Path(folder) / inner


def changed_setting(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Say which setting of an interrupted run differs; None where all are equal.

    Args:
        before: As they were written, from JSON.
        now: As JSON takes them.
    """
    now = json.loads(json.dumps(now))
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            return f"{name} was {before.get(name)!r}, now {now.get(name)!r}"
    return None


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


def refuse_constant(constant: str) -> None:
    """What a JSON decoder calls for NaN and infinities, as ``parse_constant``."""
    raise ValueError(f"{constant} is no number; null stands for what is not defined")


def parse_json(text: str | bytes, source: str) -> Any:
    """The inverse of :func:`to_json`.

    Args:
        text: JSON.
        source: Where it is from, for the message.

    Raises:
        ValueError: It is not JSON, or holds NaN or an infinity, which Python's own reader takes.
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
    """Read what :func:`write_json_lines` wrote.

    Raises:
        ValueError: A line is not JSON; the message names file and line.
    """
    lines = Path(path).read_bytes().splitlines()
    return [parse_json(line, f"{path}, line {i}") for i, line in enumerate(lines, start=1)]


def fingerprint_of(*parts: Any) -> str:
    """A digest of values that JSON takes; others count by their text."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
