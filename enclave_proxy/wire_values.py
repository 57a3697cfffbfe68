# SPDX-License-Identifier: Apache-2.0
"""Frozen values and counters as JSON and back, by their type annotations: what passes between our own processes.

Dataclasses become objects with their class under `#` and their constructor's fields; bytes are base64. Decoding takes
only what the annotation of the place allows, so that a message can make nothing but what was meant to be sent.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import types
import typing
from collections import Counter
from enum import Enum
from typing import Any, TypeVar, cast

T = TypeVar("T")

_PLAIN = (str, int, float, bool, type(None))


class WireError(ValueError):
    """A message that does not hold what its place allows. The text quotes no value."""


def encode(value: object) -> Any:
    """Something that JSON can hold. Raises TypeError for a kind of value that is not known here."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        members = {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
        return {"#": type(value).__name__, **members}
    match value:
        case Enum():
            return value.value
        case bytes():
            return base64.b64encode(value).decode("ascii")
        case tuple() | list():
            return [encode(item) for item in value]
        case frozenset():
            return sorted(encode(item) for item in value)
        case dict():
            return {encode(key): encode(item) for key, item in value.items()}
        case _ if isinstance(value, _PLAIN):
            return value
    raise TypeError(f"a {type(value).__name__} has no form on the wire")


def decode(kind: type[T], data: object) -> T:
    """The value of an annotated type. Equal parts that are costly to make (a certificate and its key, say) are made
    once. Raises WireError."""
    try:
        return cast(T, _decode(kind, data, {}))
    except (KeyError, TypeError, ValueError) as error:
        raise WireError(f"cannot read a {kind.__name__}: {type(error).__name__}") from None


def _decode(kind: Any, data: Any, made: dict[str, object]) -> object:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _decode(_choose(arguments, data), data, made)
    if origin is typing.Literal:
        return _checked(data, data in arguments)
    if origin in (tuple, list, frozenset):
        _checked(data, isinstance(data, list))
        return origin(_decode(arguments[0], item, made) for item in data)
    if origin in (dict, Counter):
        _checked(data, isinstance(data, dict))
        value = int if origin is Counter else arguments[1]
        return origin({_decode(arguments[0], key, made): _decode(value, item, made) for key, item in data.items()})
    if dataclasses.is_dataclass(kind):
        return _decode_object(cast(type, kind), data, made)
    if kind is bytes:
        return base64.b64decode(data, validate=True)
    if kind is float:
        return float(_checked(data, type(data) in (int, float)))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(data)
    return _checked(data, type(data) is kind)


def _decode_object(kind: type, data: Any, made: dict[str, object]) -> object:
    _checked(data, isinstance(data, dict) and data.get("#") == kind.__name__)
    frozen = kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    name = json.dumps(data, sort_keys=True) if frozen else ""
    if frozen and name in made:
        return made[name]
    hints = _hints(kind)
    _checked(data, data.keys() - {"#"} == hints.keys())
    value = kind(**{member: _decode(hint, data[member], made) for member, hint in hints.items()})
    if frozen:
        made[name] = value
    return value


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


def _choose(kinds: tuple[Any, ...], data: Any) -> Any:
    """Which of several types a value is of: objects say it themselves."""
    for kind in kinds:
        if kind is type(None):
            if data is None:
                return kind
        elif dataclasses.is_dataclass(kind):
            if isinstance(data, dict) and data.get("#") == cast(type, kind).__name__:
                return kind
        elif typing.get_origin(kind) is not None:
            if isinstance(data, list):
                return kind
        elif type(data) is kind:
            return kind
    raise WireError("none of the kinds that may stand here")


def _checked(data: Any, fits: bool) -> Any:
    if not fits:
        raise WireError("of another kind than may stand here")
    return data
