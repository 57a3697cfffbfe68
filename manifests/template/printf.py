# SPDX-License-Identifier: Apache-2.0
"""printf: Go's directives, but for argument indexes, `*`, the flag # and verbs that print addresses or Go syntax."""

from __future__ import annotations

import re

from manifests.template.errors import FunctionError
from manifests.template.printing import PLAIN, Format, Printer
from manifests.template.values import Value, type_name

_DIRECTIVE = re.compile(r"%(?P<flags>[-+ 0#]*)(?P<width>[0-9]*)(?P<precision>\.[0-9]*)?(?P<verb>.?)", re.DOTALL)
_UNSUPPORTED = frozenset("pwEFGO[*")
# Go reads numbers up to a million as width and precision; a thousand is more than any line is long.
MAX_WIDTH = 1000


def printf(format_string: Value, *values: Value) -> str:
    """Go's Sprintf. Raises FunctionError for a directive that is not supported, naming it."""
    if not isinstance(format_string, str):
        raise FunctionError(f"wrong type for value; expected string; got {type_name(format_string)}")
    printer = Printer()
    used = end = 0
    for match in _DIRECTIVE.finditer(format_string):
        printer.add(format_string[end : match.start()])
        end = match.end()
        verb = match["verb"]
        if verb == "":
            printer.add("%!(NOVERB)")
        elif verb == "%":
            printer.add("%")
        else:
            how = _format(match)
            if used < len(values):
                _directive(printer, values[used], how)
                used += 1
            else:
                printer.add(f"%!{verb}(MISSING)")
    printer.add(format_string[end:])
    _extra(printer, values[used:])
    return printer.text()


def check_format(text: str) -> None:
    """Raise FunctionError if a format asks for something that is not supported."""
    for match in _DIRECTIVE.finditer(text):
        if match["verb"] not in ("", "%"):
            _format(match)


def _format(match: re.Match[str]) -> Format:
    flags = match["flags"]
    if match["verb"] in _UNSUPPORTED or "#" in flags:
        raise FunctionError(f"{match[0][:20]} is not supported in manifests")
    width = int(match["width"][:10]) if match["width"] else None
    precision = None if match["precision"] is None else int(match["precision"][1:11] or 0)
    if max(width or 0, precision or 0) > MAX_WIDTH:
        raise FunctionError(f"{match[0][:20]} is not supported in manifests: at most {MAX_WIDTH} characters")
    minus = "-" in flags
    plus, named = "+" in flags, match["verb"] == "v" and "+" in flags
    return Format(
        verb=match["verb"],
        minus=minus,
        plus=plus and not named,
        zero="0" in flags and not minus,
        named=named,
        space=" " in flags,
        width=width,
        precision=precision,
    )


def _directive(printer: Printer, value: Value, how: Format) -> None:
    if how.verb == "T":
        printer.value(type_name(value), Format("s", minus=how.minus, width=how.width))
    else:
        printer.value(value, how)


def _extra(printer: Printer, values: tuple[Value, ...]) -> None:
    for place, value in enumerate(values):
        printer.add(", " if place else "%!(EXTRA ")
        if value is None:
            printer.add("<nil>")
        else:
            printer.add(f"{type_name(value)}=")
            printer.value(value, PLAIN)
    if values:
        printer.add(")")
