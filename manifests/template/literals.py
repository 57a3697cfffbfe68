# SPDX-License-Identifier: Apache-2.0
"""Go's literals: numbers, characters and quoted strings."""

from __future__ import annotations

import re

from manifests.template.values import Value, decode, encode

_MAX_INT = 2**63 - 1
# Digits beyond any that a number of 64 bits can have; also keeps a long literal from costing anything.
_MAX_NUMBER = 400
_DECIMAL = re.compile(r"[+-]?(?:0|[1-9](?:_?[0-9])*)")
_OTHER_BASES = re.compile(r"[+-]?0(?:[xX](?:_?[0-9a-fA-F])+|[bB](?:_?[01])+|[oO]?(?:_?[0-7])+)")
_FLOAT = re.compile(r"[+-]?(?:[0-9]+(?:_[0-9]+)*)?(?:\.(?:[0-9]+(?:_[0-9]+)*)?)?(?:[eE][+-]?[0-9]+(?:_[0-9]+)*)?")
_HEX_FLOAT = re.compile(r"[+-]?0[xX]_?[0-9a-fA-F_]*(?:\.[0-9a-fA-F_]*)?[pP][+-]?[0-9]+")
_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\"}
_ESCAPE = re.compile(
    r"\\(?:([abfnrtv\\'\"])|([0-7]{3})|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.?))", re.DOTALL
)


class UnsupportedLiteral(ValueError):
    """Go knows it."""


def number(source: str) -> Value:
    """An int or float64. Raises ValueError with Go's text."""
    if source.endswith("i") and not source.lower().startswith(("0x", "+0x", "-0x")):
        raise UnsupportedLiteral(f"complex number {source} is not supported in manifests")
    if len(source) > _MAX_NUMBER:
        raise ValueError(f'illegal number syntax: "{source[:20]}…"')
    value = _integer(source)
    if value is None:
        if source.lstrip("+-").isdecimal():  # such as 08
            raise ValueError(f'integer overflow: "{source}"')
        return _float(source)
    if not -_MAX_INT - 1 <= value <= _MAX_INT:
        if value <= 2 * _MAX_INT + 1 and value > 0:
            raise ValueError(f"{source} overflows int")
        raise ValueError(f'integer overflow: "{source}"')
    return value


def _integer(source: str) -> int | None:
    if _DECIMAL.fullmatch(source):
        return int(source)
    if _OTHER_BASES.fullmatch(source):
        body = source.lstrip("+-").replace("_", "").lower()
        base = {"x": 16, "b": 2, "o": 8}.get(body[1:2], 8)
        value = int(body[2:] if body[1:2] in "xbo" and len(body) > 1 else body, base)
        return -value if source[0] == "-" else value
    return None


def _float(source: str) -> Value:
    if _HEX_FLOAT.fullmatch(source):
        try:
            return float.fromhex(source.replace("_", ""))
        except (ValueError, OverflowError):
            raise ValueError(f'illegal number syntax: "{source}"') from None
    if not _FLOAT.fullmatch(source) or not any(character.isdigit() for character in source):
        raise ValueError(f'illegal number syntax: "{source}"')
    if not any(character in ".eE" for character in source):
        raise ValueError(f'illegal number syntax: "{source}"')
    value = float(source.replace("_", ""))
    if value in (float("inf"), float("-inf")):
        raise ValueError(f'illegal number syntax: "{source}"')
    # Without a fraction and exponent it would be an int; with one, Go takes it for a float64.
    return value


def character(source: str) -> int:
    """The code point of 'c'. Raises ValueError."""
    body = source[1:-1]
    text = _unescape(body, "'") if body else None
    if text is None:
        raise ValueError("invalid syntax")
    if len(text) == 1:
        code = ord(text)
        return code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else code
    raise ValueError(f"malformed character constant: {source}")


def string(source: str) -> str:
    """The value of "text" or `text`. Raises ValueError with Go's text."""
    if source[0] == "`":
        return source[1:-1].replace("\r", "")
    text = _unescape(source[1:-1], '"')
    if text is None:
        raise ValueError("invalid syntax")
    return text


def _unescape(body: str, quote: str) -> str | None:
    valid = True

    def replace(match: re.Match[str]) -> str:
        nonlocal valid
        plain, octal, byte, short, long, _ = match.groups()
        if plain is not None:
            valid = valid and (plain not in "'\"" or plain == quote)
            return _ESCAPES.get(plain, plain)
        if octal is not None or byte is not None:
            code = int(octal, 8) if octal is not None else int(byte, 16)
            valid = valid and code < 256
            return chr(code) if code < 128 else chr(0xDC00 + code) if code < 256 else ""
        if short is not None or long is not None:
            code = int(short or long, 16)
            valid = valid and code < 0x110000 and not 0xD800 <= code < 0xE000
            return chr(code) if valid else ""
        valid = False
        return ""

    text = _ESCAPE.sub(replace, body)
    # Escaped bytes that stand together may be a character in UTF-8.
    return decode(encode(text)) if valid else None
