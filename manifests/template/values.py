# SPDX-License-Identifier: Apache-2.0
"""Go's values in Python, as far as templates see them.

    nil, no value   None            []byte          bytes           struct               Struct
    bool            bool            slice           tuple           map[string]…         Table
    int             int             uint, uint8     Uint, Byte
    float64         float           string          str (bytes outside UTF-8 as surrogate escapes)

`type_name` of Struct, Table and subclasses of these is what errors and printf call the type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


class Uint(int):
    """Go's uint."""

    type_name = "uint"


class Byte(Uint):
    """One byte of a string or []byte."""

    type_name = "uint8"


@dataclass(frozen=True, slots=True)
class Struct:
    """Named fields in order; asking for another one is an error."""

    type_name: str
    fields: Mapping[str, Value] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Table:
    """A map; a missing key has no value as a field, and `zero` through the function index."""

    entries: Mapping[str, Value] = field(repr=False)
    zero: Value = field(default=None, repr=False)
    type_name: str = "map[string]interface {}"


Value = None | bool | int | float | str | bytes | tuple["Value", ...] | Struct | Table


def type_name(value: Value) -> str:
    """What Go calls the type."""
    match value:
        case Struct() | Table() | Uint():
            return value.type_name
        case None:
            return "<nil>"
        case bool():
            return "bool"
        case int():
            return "int"
        case float():
            return "float64"
        case str():
            return "string"
        case bytes():
            return "[]uint8"
        case _:
            return "[]interface {}"


def encode(text: str) -> bytes:
    """The bytes of a string."""
    return text.encode("utf-8", "surrogateescape")


def decode(data: bytes) -> str:
    """The string of these bytes."""
    return data.decode("utf-8", "surrogateescape")


def truth(value: Value) -> bool:
    """Go's `IsTrue`: not zero, not empty. A struct is always true."""
    match value:
        case None:
            return False
        case Struct():
            return True
        case Table():
            return bool(value.entries)
        case _:
            return bool(value)


def size(value: Value) -> int:
    """How much work it is to look at a value: bytes of strings, entries of the rest, one level deep."""
    match value:
        case str() | bytes() | tuple():
            return len(value)
        case Struct():
            return len(value.fields)
        case Table():
            return len(value.entries)
        case _:
            return 0
