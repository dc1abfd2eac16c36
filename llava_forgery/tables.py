"""Text files and CSV tables, with errors that name the file for encodings and columns."""

import csv
import io
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path


def read_text(path: str | PathLike) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The encoding is different; the message names file and line.
    """
    data = Path(path).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line} is not UTF-8 text (byte 0x{data[error.start]:02x}); save the "
            "file as UTF-8, such as 'CSV UTF-8' in a spreadsheet"
        ) from error


def read_table(
    path: str | PathLike, columns: Sequence[str], optional: Sequence[str] | None = None
) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file whose first line names its columns.

    Args:
        path: File to read.
        columns: Names of required columns.
        optional: Names of optional columns; None allows any.

    Yields:
        Location of the row, such as ``"people.csv, line 3"``, and its stripped values by column.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: As for :func:`read_text`; a column is missing or unknown; or a row has a
            different number of values than there are columns.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; expected a CSV with {','.join(columns)}")
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    found = [(name or "").strip() for name in rows.fieldnames or ()]
    allowed = set(found) if optional is None else {*columns, *optional}
    if not set(columns) <= set(found) <= allowed or len(set(found)) < len(found):
        more = f" and optionally {','.join(optional)}" if optional else ""
        raise ValueError(
            f"{path}, line 1: expected the columns {','.join(columns)}{more}, got "
            f"{','.join(found)!r}"
        )
    rows.fieldnames = found
    for row in rows:
        where = f"{path}, line {rows.line_num}"
        if None in row or None in row.values():
            raise ValueError(f"{where}: expected {len(found)} values, one for each column")
        yield where, {name: value.strip() for name, value in row.items()}
