# SPDX-License-Identifier: Apache-2.0
"""The PKCS#11 configuration: a JSON object with the members that MarbleRun's CLI reads.

    {"Path": "/usr/lib/softhsm/libsofthsm2.so", "Pin": "1234", "TokenLabel": "operator"}

`Path` is the module, `Pin` the user's PIN; one of `TokenSerial`, `TokenLabel` and `SlotNumber` says which token.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Self

from marblemesh.client.errors import TokenError

MAX_TOKEN_CONFIG = 64 * 1024
_SELECTORS = ("TokenSerial", "TokenLabel", "SlotNumber")


@dataclass(frozen=True, slots=True)
class TokenConfig:
    """Which token, by which module, with which PIN."""

    path: str
    pin: str = field(repr=False)
    token_serial: str | None = None
    token_label: str | None = None
    slot_number: int | None = None

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read the JSON text; member names in any case. Raises TokenError that never quotes the PIN."""
        if len(raw) > MAX_TOKEN_CONFIG:
            raise TokenError(f"PKCS#11 config has {len(raw)} bytes, at most {MAX_TOKEN_CONFIG} are allowed")
        try:
            document = json.loads(raw)
        except (ValueError, RecursionError):
            raise TokenError("PKCS#11 config is no JSON") from None
        if not isinstance(document, dict):
            raise TokenError("PKCS#11 config: want a JSON object")
        given = {str(name).lower(): value for name, value in document.items() if value is not None}
        path, pin = (_text(given, name, needed=True) for name in ("Path", "Pin"))
        serial, label = (_text(given, name) for name in _SELECTORS[:2])
        slot = given.get("slotnumber")
        if slot is not None and (not isinstance(slot, int) or isinstance(slot, bool) or slot < 0):
            raise TokenError("PKCS#11 config: want a number as SlotNumber")
        if sum(selector is not None for selector in (serial, label, slot)) != 1:
            raise TokenError(f"PKCS#11 config: want exactly one of {', '.join(_SELECTORS)}")
        return cls(path or "", pin or "", serial, label, slot)


@dataclass(frozen=True, slots=True)
class TokenObject:
    """A key or certificate on the token, by its id (literal bytes), its label, or both."""

    id: bytes | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if self.id is None and self.label is None:
            raise TokenError("an object on a token needs an id or a label")

    def __str__(self) -> str:
        named = (("id", self.id.decode("utf-8", "replace") if self.id is not None else None), ("label", self.label))
        return " and ".join(f"{name} {value!r}" for name, value in named if value is not None)


def _text(given: dict[str, object], name: str, *, needed: bool = False) -> str | None:
    value = given.get(name.lower())
    # Written as "" by those who fill in a template.
    if value is None or value == "":
        if needed:
            raise TokenError(f"PKCS#11 config: {name} is missing")
        return None
    if not isinstance(value, str):
        raise TokenError(f"PKCS#11 config: want a text as {name}")
    if "\0" in value:
        raise TokenError(f"PKCS#11 config: {name} holds a NUL")
    return value
