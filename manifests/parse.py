# SPDX-License-Identifier: Apache-2.0
"""The one entry: raw bytes → `Manifest`, or `ManifestError` with everything that is wrong.

Three steps, each of which reports all that it finds: JSON text (the first error ends it), member types, then decoding
and rules together. A later step does not look at what an earlier one refused.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import ValidationError

from manifests import wire
from manifests.check import check
from manifests.convert import convert
from manifests.errors import ManifestError, ManifestShapeError, Problem
from manifests.json_text import Json, load
from manifests.model import Manifest
from manifests.places import MAX_PROBLEMS, Findings, TooManyProblems, member_path


def parse(raw: bytes) -> Manifest:
    """The checked manifest in `raw` (UTF-8 JSON, at most 16 MiB).

    Raises ManifestSyntaxError (no JSON; has line and column) or ManifestError (`problems`: all of them, with paths).
    The text of the error begins with MarbleRun's own message where MarbleRun refuses the same thing.
    """
    document = shape(load(raw))
    found = Findings()
    try:
        check(document, found)
        manifest = convert(document, raw, found)
    except TooManyProblems:
        raise ManifestError(tuple(found.errors)) from None
    if found.errors:
        raise ManifestError(tuple(found.errors))
    _warn_unknown(document, found)
    return replace(manifest, warnings=tuple(found.warnings))


def shape(tree: Json) -> wire.ManifestWire:
    """The members by name and JSON type, nothing of them decoded yet; raises ManifestShapeError."""
    if not isinstance(tree, dict):
        raise ManifestShapeError((Problem("", f"want a JSON object, got {wire.json_kind(tree)}"),))
    try:
        return wire.ManifestWire.model_validate(tree)
    except ValidationError as error:
        details = error.errors(include_url=False)[:MAX_PROBLEMS]
        raise ManifestShapeError(
            tuple(
                Problem(member_path(*item["loc"]), _message(item["type"], item["msg"], item["input"]))
                for item in details
            )
        ) from None


def _message(kind: str, text: str, value: object) -> str:
    """pydantic's finding in the words of JSON. Custom errors carry their own text."""
    wanted = {
        "int_type": "a whole number without fraction or exponent",
        "bool_type": "true or false",
        "string_type": "a string",
        "list_type": "an array",
        "dict_type": "an object",
        "model_type": "an object",
    }.get(kind)
    if wanted is not None:
        return f"want {wanted}, got {wire.json_kind(value)}"
    if kind in ("greater_than_equal", "less_than_equal"):
        return f"number out of range: {text.removeprefix('Input should be ')}"
    return text


def _warn_unknown(document: wire.Wire, found: Findings, *at: str | int) -> None:
    """Unknown members are allowed (MarbleRun ignores ours, we ignore others'), but a typo should not go unseen."""
    for name in document.model_extra or () if document.warn_unknown else ():
        found.warn("unknown member, ignored", *at, name)
    for field, info in type(document).model_fields.items():
        value, path = getattr(document, field), (*at, info.alias or field)
        if isinstance(value, wire.Wire):
            _warn_unknown(value, found, *path)
        elif isinstance(value, dict):
            for key, item in value.items():
                if isinstance(item, wire.Wire):
                    _warn_unknown(item, found, *path, key)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, wire.Wire):
                    _warn_unknown(item, found, *path, index)
