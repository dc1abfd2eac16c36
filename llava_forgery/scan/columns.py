"""Dataclasses as Arrow: a column for each field, its type from the field's annotation.

What passes between the processes of a scan is data alone: reading it runs nothing.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa

Value = TypeVar("Value")


class Codec(NamedTuple):
    """How values of one annotation stand in a column."""

    type: pa.DataType
    encode: Callable[[Any], Any]
    """To what ``pa.array`` and JSON take, but for bytes."""
    decode: Callable[[Any], Any]
    """The inverse, of what ``to_pylist`` and JSON give."""


def to_columns(kind: type[Value], values: Iterable[Value]) -> pa.Table:
    """Values as a table.

    Args:
        kind: A dataclass, as :func:`codec_of` takes it.
        values: Of it.
    """
    codec = codec_of(kind)
    return pa.Table.from_pylist([codec.encode(value) for value in values], pa.schema(codec.type))


def from_columns(kind: type[Value], table: pa.Table) -> list[Value]:
    """The inverse of :func:`to_columns`."""
    return [codec_of(kind).decode(row) for row in table.to_pylist()]


@cache
def codec_of(hint: Any) -> Codec:
    """The codec of an annotation.

    Args:
        hint: A dataclass or named tuple; a plain type, an enum or an array; a list, a sequence or
            a tuple of one of these; one of these or None; one of several dataclasses. What is
            ``Annotated`` with an Arrow type stands as that type.

    Raises:
        TypeError: It is something else.
    """
    if hint in _PLAIN:
        return Codec(_PLAIN[hint], _same, _same)
    if hint is np.ndarray:
        return Codec(_ARRAY, _encode_array, _decode_array)
    arguments = get_args(hint)
    if get_origin(hint) is Annotated:
        return Codec(arguments[1], _same, _same)
    if get_origin(hint) in (Union, UnionType):
        return _union([kind for kind in arguments if kind is not NoneType], NoneType in arguments)
    if (origin := get_origin(hint)) in (list, tuple, Sequence):
        item, make = codec_of(arguments[0]), list if origin is list else tuple
        return Codec(
            pa.list_(item.type),
            lambda values: [item.encode(value) for value in values],
            lambda values: make(item.decode(value) for value in values),
        )
    if isinstance(hint, type) and issubclass(hint, Enum):
        return Codec(pa.string(), lambda value: value.value, hint)
    if is_dataclass(hint) or hasattr(hint, "_fields"):
        return _record(hint)
    raise TypeError(f"{hint} has no column; give it a type that codec_of knows")


_PLAIN = {
    str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(),
    bytes: pa.large_binary(),
}  # fmt: skip
_ARRAY = pa.struct({"dtype": pa.string(), "shape": pa.list_(pa.int64()), "data": pa.large_binary()})


def _same(value: Any) -> Any:
    return value


def _encode_array(array: np.ndarray) -> dict[str, Any]:
    return {"dtype": array.dtype.str, "shape": array.shape, "data": array.tobytes()}


def _decode_array(value: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(value["data"], value["dtype"]).reshape(value["shape"])


def _record(kind: type) -> Codec:
    hints = get_type_hints(kind, include_extras=True)
    fields = {name: codec_of(hint) for name, hint in hints.items()}
    return Codec(
        pa.struct({name: field.type for name, field in fields.items()}),
        lambda value: {n: field.encode(getattr(value, n)) for n, field in fields.items()},
        lambda row: kind(**{name: field.decode(row[name]) for name, field in fields.items()}),
    )


def _union(kinds: Sequence[Any], optional: bool) -> Codec:
    """One of several dataclasses by its name, or one kind of value; or None."""
    if len(kinds) == 1:
        codec = codec_of(kinds[0])
        type_, encode, decode = codec
    else:
        by_name = {kind.__name__: codec_of(kind) for kind in kinds}
        type_ = pa.struct({name: codec.type for name, codec in by_name.items()})

        def encode(value: Any) -> dict[str, Any]:
            name = type(value).__name__
            return {name: by_name[name].encode(value)}

        def decode(row: dict[str, Any]) -> Any:
            ((name, fields),) = ((n, f) for n, f in row.items() if f is not None)
            return by_name[name].decode(fields)

    if not optional:
        return Codec(type_, encode, decode)
    return Codec(
        type_,
        lambda value: None if value is None else encode(value),
        lambda value: None if value is None else decode(value),
    )
