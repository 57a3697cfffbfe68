# SPDX-License-Identifier: Apache-2.0
"""The built-in functions, but for `and` and `or`, which the evaluator runs itself because they stop early."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from types import MappingProxyType

from manifests.template.errors import FunctionError
from manifests.template.escaping import html, js, urlquery
from manifests.template.printf import printf
from manifests.template.printing import Printer
from manifests.template.values import Byte, Struct, Table, Value, decode, encode, truth, type_name


class Missing(Enum):
    """No value came through the pipe."""

    MISSING = auto()


MISSING = Missing.MISSING


@dataclass(frozen=True, slots=True)
class Builtin:
    """A function of `least` arguments or more; of exactly `most` if that is given. `formats`: the first is a format."""

    call: Callable[..., Value]
    least: int
    most: int | None = None
    formats: bool = False


def _not(value: Value) -> bool:
    return not truth(value)


def _len(value: Value) -> int:
    match value:
        case str():
            return len(encode(value))
        case bytes() | tuple():
            return len(value)
        case Table():
            return len(value.entries)
        case None:
            raise FunctionError("reflect: call of reflect.Value.Type on zero Value")
    raise FunctionError(f"len of type {type_name(value)}")


def _index(item: Value, *indexes: Value) -> Value:
    if item is None:
        raise FunctionError("index of untyped nil")
    for index in indexes:
        match item:
            case str():
                data = encode(item)
                item = Byte(data[_position(index, len(data), "string")])
            case bytes():
                item = Byte(item[_position(index, len(item), "slice")])
            case tuple():
                item = item[_position(index, len(item), "slice")]
            case Table():
                item = item.entries.get(_key(index), item.zero)
            case None:
                raise FunctionError("index of nil pointer")
            case _:
                raise FunctionError(f"can't index item of type {type_name(item)}")
    return item


def _key(index: Value) -> str:
    if index is None:
        raise FunctionError("value is nil; should be of type string")
    if not isinstance(index, str):
        raise FunctionError(f"value has type {type_name(index)}; should be string")
    return index


def _bound(index: Value, limit: int) -> int:
    if index is None:
        raise FunctionError("cannot index slice/array with nil")
    if not isinstance(index, int) or isinstance(index, bool):
        raise FunctionError(f"cannot index slice/array with type {type_name(index)}")
    if not 0 <= index <= limit:
        raise FunctionError(f"index out of range: {int(index)}")
    return int(index)


def _position(index: Value, length: int, what: str) -> int:
    position = _bound(index, length)
    if position == length:
        raise FunctionError(f"reflect: {what} index out of range")
    return position


def _slice(item: Value, *indexes: Value) -> Value:
    if item is None:
        raise FunctionError("slice of untyped nil")
    if len(indexes) > 3:
        raise FunctionError(f"too many slice indexes: {len(indexes)}")
    if isinstance(item, str):
        if len(indexes) == 3:
            raise FunctionError("cannot 3-index slice a string")
        data = encode(item)
        start, end = _bounds(indexes, len(data))
        return decode(data[start:end])
    if not isinstance(item, bytes | tuple):
        raise FunctionError(f"can't slice item of type {type_name(item)}")
    start, end = _bounds(indexes, len(item))
    return item[start:end]


def _bounds(indexes: tuple[Value, ...], length: int) -> tuple[int, int]:
    found = [_bound(index, length) for index in indexes]
    start, end = (*found, *(0, length)[len(found) :])[:2]
    if start > end:
        raise FunctionError(f"invalid slice index: {start} > {end}")
    if len(found) == 3 and end > found[2]:
        raise FunctionError(f"invalid slice index: {end} > {found[2]}")
    return start, end


def _kind(value: Value) -> str | None:
    """What may be compared with each other; None: not of a basic kind."""
    match value:
        case bool():
            return "bool"
        case int():
            return "int"
        case float():
            return "float"
        case str():
            return "string"
    return None


def _eq(first: Value, *others: Value) -> bool:
    if not others:
        raise FunctionError("missing argument for comparison")
    return any(_equal(first, other) for other in others)


def _equal(first: Value, other: Value) -> bool:
    kind = _kind(first)
    if kind != _kind(other):
        if first is not None and other is not None:
            raise FunctionError(f"incompatible types for comparison: {type_name(first)} and {type_name(other)}")
        return False
    if kind is not None:
        return first == other
    if first is None or other is None:
        return first is other
    if type_name(first) != type_name(other) and isinstance(first, Struct) != isinstance(other, Struct):
        raise FunctionError(f"non-comparable types {type_name(first)} and {type_name(other)}")
    raise FunctionError(f"non-comparable type {type_name(other)}")


def _less(first: Value, other: Value) -> bool:
    kind, other_kind = _kind(first), _kind(other)
    if kind is None or other_kind is None:
        raise FunctionError("invalid type for comparison")
    if kind != other_kind:
        raise FunctionError(f"incompatible types for comparison: {type_name(first)} and {type_name(other)}")
    match first, other:
        case (bool(), _):
            raise FunctionError("invalid type for comparison")
        case (str(), str()):
            return encode(first) < encode(other)
        case (int() | float(), int() | float()):
            return first < other
    raise FunctionError("invalid type for comparison")


def _print(*values: Value) -> str:
    return Printer().print(*values)


def _println(*values: Value) -> str:
    return Printer().println(*values)


def _never(*_: Value) -> Value:
    raise FunctionError("is run by the evaluator")


BUILTINS: Mapping[str, Builtin] = MappingProxyType(
    {
        "and": Builtin(_never, 1),
        "or": Builtin(_never, 1),
        "not": Builtin(_not, 1, 1),
        "len": Builtin(_len, 1, 1),
        "index": Builtin(_index, 1),
        "slice": Builtin(_slice, 1),
        "print": Builtin(_print, 0),
        "printf": Builtin(printf, 1, formats=True),
        "println": Builtin(_println, 0),
        "html": Builtin(html, 0),
        "js": Builtin(js, 0),
        "urlquery": Builtin(urlquery, 0),
        "eq": Builtin(_eq, 1),
        "ne": Builtin(lambda first, other: not _eq(first, other), 2, 2),
        "lt": Builtin(_less, 2, 2),
        "le": Builtin(lambda first, other: _less(first, other) or _eq(first, other), 2, 2),
        "gt": Builtin(lambda first, other: not (_less(first, other) or _eq(first, other)), 2, 2),
        "ge": Builtin(lambda first, other: not _less(first, other), 2, 2),
    }
)
