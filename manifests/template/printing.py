# SPDX-License-Identifier: Apache-2.0
"""Values as text: Go's `fmt`, default format (%v), and the verbs that templates may use. Bounded in size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from manifests.template.errors import FunctionError
from manifests.template.values import Byte, Struct, Table, Value, decode, encode, type_name

# From this power of ten on Go's shortest form has an exponent.
_EXPONENT = 6
# What a gRPC client takes as a whole is 4 MiB; nothing larger could be delivered.
MAX_OUTPUT = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Format:
    """One %-directive: flags, width and precision (None: not given). `named`: %+v."""

    verb: str = "v"
    minus: bool = False
    plus: bool = False
    zero: bool = False
    named: bool = False
    space: bool = False
    width: int | None = None
    precision: int | None = None


PLAIN = Format()


class Printer:
    """Builds one text; raises FunctionError when it grows beyond what could ever be delivered."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._size = 0

    def print(self, *values: Value) -> str:
        """Go's Sprint: a blank between two operands neither of which is a string."""
        for place, value in enumerate(values):
            if place and not isinstance(value, str) and not isinstance(values[place - 1], str):
                self.add(" ")
            self.value(value, PLAIN)
        return self.text()

    def println(self, *values: Value) -> str:
        """Go's Sprintln: blanks between all, a line break behind."""
        for place, value in enumerate(values):
            if place:
                self.add(" ")
            self.value(value, PLAIN)
        self.add("\n")
        return self.text()

    def text(self) -> str:
        """All of it; bytes that stand together may be a character now."""
        text = "".join(self._parts)
        return text if text.isascii() else decode(encode(text))

    def add(self, text: str) -> None:
        self._size += len(text)
        if self._size > MAX_OUTPUT:
            raise FunctionError(f"output is larger than {MAX_OUTPUT} bytes")
        self._parts.append(text)

    def value(self, value: Value, how: Format) -> None:
        """One value under one directive."""
        match value:
            case None:
                self.add(_pad("<nil>", how) if how.verb == "v" else f"%!{how.verb}(<nil>)")
            case bool():
                self._one(value, ("true" if value else "false") if how.verb in "vt" else None, how)
            case int():
                self._one(value, integer(value, how), replace(how, zero=how.zero and how.verb in "cq"))
            case float():
                self._one(value, floating(value, how), how)
            case str():
                self._one(value, string(value, how), how)
            case bytes():
                self._bytes(value, how)
            case Table():
                entries = sorted(value.entries.items(), key=lambda entry: encode(entry[0]))
                self._list("map[", "]", [part for entry in entries for part in entry], how, ": ")
            case Struct():
                names = [f"{name}:" for name in value.fields] if how.named else []
                self._list("{", "}", list(value.fields.values()), how, names=names)
            case _:
                self._list("[", "]", value, how)

    def wrong(self, value: Value, how: Format) -> None:
        """Go's %!verb(type=value), which keeps flags and width."""
        self.add(f"%!{how.verb}({type_name(value)}=")
        self.value(value, replace(how, verb="v"))
        self.add(")")

    def _one(self, value: Value, text: str | None, how: Format) -> None:
        if text is None:
            self.wrong(value, how)
        else:
            self.add(_pad(text, how))

    def _bytes(self, value: bytes, how: Format) -> None:
        if how.verb in "sqxX":
            self.add(_pad(string(decode(value), how) or "", how))
            return
        # Counted first: a byte becomes two characters or more, and a list of them is built before it is joined.
        if self._size + 2 * len(value) > MAX_OUTPUT:
            raise FunctionError(f"output is larger than {MAX_OUTPUT} bytes")
        self._list("[", "]", tuple(Byte(byte) for byte in value), how)

    def _list(
        self,
        left: str,
        right: str,
        values: Sequence[Value],
        how: Format,
        between: str = " ",
        names: Sequence[str] = (),
    ) -> None:
        """`between` of two characters alternates: key and value, then the next entry."""
        self.add(left)
        for place, value in enumerate(values):
            if place:
                self.add(between[(place - 1) % len(between)])
            if names:
                self.add(names[place])
            self._inner(value, how)
        self.add(right)

    def _inner(self, value: Value, how: Format) -> None:
        if value is None and how.verb != "v":
            self.add("<nil>")  # inside of something Go prints an absent value like this under every verb
        else:
            self.value(value, how)


def _pad(text: str, how: Format) -> str:
    if how.width is None or (missing := how.width - len(text)) <= 0:
        return text
    if how.minus:
        return text + " " * missing
    if not how.zero:
        return " " * missing + text
    signed = how.verb in "vgef" and text[:1] in ("-", "+", " ")
    return text[:signed] + "0" * missing + text[signed:]


def integer(value: int, how: Format) -> str | None:
    """None: the verb does not fit."""
    digits = {"v": "d", "d": "d", "b": "b", "o": "o", "x": "x", "X": "X"}.get(how.verb)
    if digits is None:
        return _as_character(value, how.verb)
    if how.precision == 0 and value == 0:
        return ""
    body = format(abs(value), digits)
    sign = "-" if value < 0 else "+" if how.plus else " " if how.space else ""
    least = how.precision or 0
    if how.precision is None and how.zero and not how.minus and how.width is not None:
        least = how.width - len(sign)
    return sign + body.rjust(least, "0")


def _as_character(value: int, verb: str) -> str | None:
    code = value if 0 <= value < 0x110000 and not 0xD800 <= value < 0xE000 else 0xFFFD
    match verb:
        case "c":
            return chr(code)
        case "q":
            return "'" + _quoted_char(chr(code), "'") + "'"
        case "U":
            return f"U+{value & 0xFFFFFFFFFFFFFFFF:04X}"
    return None


def floating(value: float, how: Format) -> str | None:
    """None: the verb does not fit."""
    if how.verb in "xXb":
        raise FunctionError(f"%{how.verb} of a float64 is not supported in manifests")
    if how.verb not in "vgef":
        return None
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    if how.verb in "ef":
        text = format(value, f".{6 if how.precision is None else how.precision}{how.verb}")
    elif how.precision is not None:
        text = format(value, f".{how.precision or 1}g")
    else:
        text = _shortest(value)
    sign = "" if text.startswith("-") else "+" if how.plus else " " if how.space else ""
    return sign + text


def _shortest(value: float) -> str:
    """The fewest digits that give the same float64; with an exponent below -4 and from 6 on, as %v and %g."""
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    text = "".join(map(str, digits))
    power = len(text) + int(exponent) - 1
    minus = "-" if sign else ""
    if value == 0:
        return f"{minus}0"
    if power < -4 or power >= _EXPONENT:
        fraction = f".{text[1:]}" if len(text) > 1 else ""
        return f"{minus}{text[0]}{fraction}e{'-' if power < 0 else '+'}{abs(power):02d}"
    if power < 0:
        return f"{minus}0.{'0' * (-power - 1)}{text}"
    whole, fraction = text[: power + 1].ljust(power + 1, "0"), text[power + 1 :]
    return f"{minus}{whole}.{fraction}" if fraction else minus + whole


def string(value: str, how: Format) -> str | None:
    """None: the verb does not fit."""
    if how.precision is not None:
        value = decode(encode(value)[: how.precision]) if how.verb in "xX" else value[: how.precision]
    match how.verb:
        case "v" | "s":
            return value
        case "x":
            return encode(value).hex(" ") if how.space else encode(value).hex()
        case "X":
            return (encode(value).hex(" ") if how.space else encode(value).hex()).upper()
        case "q":
            return quoted(value)
    return None


def quoted(text: str) -> str:
    """Go's strconv.Quote."""
    return '"' + "".join(_quoted_char(char, '"') for char in text) + '"'


_SHORT = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v", "\\": "\\\\"}


def _quoted_char(char: str, quote: str) -> str:
    if char == quote:
        return f"\\{quote}"
    if char in _SHORT:
        return _SHORT[char]
    if char == " " or char.isprintable():
        return char
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
