# SPDX-License-Identifier: Apache-2.0
"""Text → tokens, one at a time, so that an error is reported only when the parser gets there, as in Go."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto


class Kind(Enum):
    TEXT = auto()
    LEFT = auto()
    RIGHT = auto()
    SPACE = auto()
    BOOL = auto()
    NIL = auto()
    DOT = auto()
    FIELD = auto()
    VARIABLE = auto()
    IDENTIFIER = auto()
    KEYWORD = auto()
    NUMBER = auto()
    CHARACTER = auto()
    STRING = auto()
    RAW_STRING = auto()
    ASSIGN = auto()
    DECLARE = auto()
    PIPE = auto()
    OPEN = auto()
    CLOSE = auto()
    OTHER = auto()
    ERROR = auto()
    END = auto()


@dataclass(frozen=True, slots=True)
class Token:
    """`text` is the source itself, or what is wrong."""

    kind: Kind
    text: str
    position: int

    def __str__(self) -> str:
        """As Go names a token in errors."""
        match self.kind:
            case Kind.END:
                return "EOF"
            case Kind.ERROR:
                return self.text
            case Kind.KEYWORD | Kind.DOT | Kind.NIL:
                return f"<{self.text}>"
        shown = self.text[:10].replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
        return f'"{shown}"...' if len(self.text) > 10 else f'"{shown}"'


KEYWORDS = frozenset({"break", "continue", "else", "end", "if", "range", "with", "block", "define", "template"})

_BLANKS = " \t\r\n"
_SPACE = re.compile(r"[ \t\r\n]+")
_RIGHT = re.compile(r"[ \t\r\n]+-\}\}[ \t\r\n]*|\}\}")
# After a comment only one blank may stand before the trim marker.
_COMMENT_END = re.compile(r"[ \t\r\n]-\}\}[ \t\r\n]*|\}\}")
_QUOTED = re.compile(r'"(?:[^"\\\n]|\\[^\n])*"')
_CHARACTER = re.compile(r"'(?:[^'\\\n]|\\[^\n])*'")
_NUMBER = re.compile(
    r"[+-]?(?:0[xX][0-9a-fA-F_]*(?:\.[0-9a-fA-F_]*)?(?:[pP][+-]?[0-9_]*)?|0[oO][0-7_]*(?:\.[0-7_]*)?"
    r"|0[bB][01_]*(?:\.[01_]*)?|[0-9_]*(?:\.[0-9_]*)?(?:[eE][+-]?[0-9_]*)?)i?"
)
_SIMPLE = {"=": Kind.ASSIGN, "|": Kind.PIPE}
_TERMINATORS = frozenset(" \t\r\n.,|:)(")


def scan(text: str) -> Iterator[Token]:
    """All tokens; the last one is END or ERROR."""
    position = 0
    while (left := text.find("{{", position)) >= 0:
        after = left + 2
        trim = text[after : after + 1] == "-" and text[after + 1 : after + 2] in tuple(_BLANKS)
        before = text[position:left].rstrip(_BLANKS) if trim else text[position:left]
        if before:
            yield Token(Kind.TEXT, before, position)
        after += 2 if trim else 0
        if text.startswith("/*", after):
            end = _comment(text, after)
            if isinstance(end, Token):
                yield end
                return
            position = end
            continue
        yield Token(Kind.LEFT, "{{", left)
        for token in _action(text, after):
            yield token
            position = token.position + len(token.text)
            if token.kind is Kind.ERROR:
                return
    if position < len(text):
        yield Token(Kind.TEXT, text[position:], position)
    yield Token(Kind.END, "", len(text))


def _comment(text: str, start: int) -> int | Token:
    end = text.find("*/", start + 2)
    if end < 0:
        return Token(Kind.ERROR, "unclosed comment", start)
    right = _COMMENT_END.match(text, end + 2)
    return right.end() if right else Token(Kind.ERROR, "comment ends before closing delimiter", start)


def _action(text: str, position: int) -> Iterator[Token]:
    """Tokens up to and including the right delimiter."""
    depth = 0
    while True:
        token = _next(text, position)
        if token.kind is Kind.RIGHT and depth:
            token = Token(Kind.ERROR, "unclosed left paren", position)
        depth += (token.kind is Kind.OPEN) - (token.kind is Kind.CLOSE)
        if depth < 0:
            token = Token(Kind.ERROR, "unexpected right paren", position)
        yield token
        if token.kind in (Kind.RIGHT, Kind.ERROR):
            return
        position += len(token.text)


def _next(text: str, at: int) -> Token:
    if right := _RIGHT.match(text, at):
        return Token(Kind.RIGHT, right[0], at)
    if at >= len(text):
        return Token(Kind.ERROR, "unclosed action", at)
    if space := _SPACE.match(text, at):
        return Token(Kind.SPACE, space[0], at)
    char = text[at]
    following = text[at + 1 : at + 2]
    if char in _SIMPLE:
        return Token(_SIMPLE[char], char, at)
    if char == ":":
        return Token(Kind.DECLARE, ":=", at) if following == "=" else Token(Kind.ERROR, "expected :=", at)
    if char in "\"'`":
        return _literal(text, at, char)
    if char == "$" or (char == "." and not ("0" <= following <= "9")):
        return _word(text, at, at + 1)
    if char in "+-.0123456789":
        return _number(text, at)
    if _is_letter(char):
        return _word(text, at, at)
    if char == "(":
        return Token(Kind.OPEN, char, at)
    if char == ")":
        return Token(Kind.CLOSE, char, at)
    if char.isascii() and char.isprintable():
        return Token(Kind.OTHER, char, at)
    return Token(Kind.ERROR, f"unrecognized character in action: {_unicode(char)}", at)


def _literal(text: str, at: int, quote: str) -> Token:
    if quote == "`":
        end = text.find("`", at + 1)
        if end < 0:
            return Token(Kind.ERROR, "unterminated raw quoted string", at)
        return Token(Kind.RAW_STRING, text[at : end + 1], at)
    pattern, kind, what = (
        (_QUOTED, Kind.STRING, "quoted string") if quote == '"' else (_CHARACTER, Kind.CHARACTER, "character constant")
    )
    found = pattern.match(text, at)
    return Token(kind, found[0], at) if found else Token(Kind.ERROR, f"unterminated {what}", at)


def _number(text: str, at: int) -> Token:
    found = _NUMBER.match(text, at)
    end = found.end() if found else at
    following = text[end : end + 1]
    if following and (_is_letter(following) or following in "+-"):
        # A sign begins the imaginary part of a complex number, which would have to follow.
        more = _NUMBER.match(text, end)
        end = more.end() if following in "+-" and more else end + 1
        return Token(Kind.ERROR, f'bad number syntax: "{text[at:end]}"', at)
    return Token(Kind.NUMBER, text[at:end], at)


def _word(text: str, at: int, start: int) -> Token:
    """A field, variable, keyword or identifier."""
    end = start
    while end < len(text) and _is_letter(text[end]):
        end += 1
    word = text[at:end]
    if end < len(text) and text[end] not in _TERMINATORS and not text.startswith("}}", end):
        return Token(Kind.ERROR, f"bad character {_unicode(text[end])}", end)
    if word == ".":
        return Token(Kind.DOT, word, at)
    if word[0] in ".$":
        return Token(Kind.FIELD if word[0] == "." else Kind.VARIABLE, word, at)
    if word in ("true", "false"):
        return Token(Kind.BOOL, word, at)
    if word == "nil":
        return Token(Kind.NIL, word, at)
    return Token(Kind.KEYWORD if word in KEYWORDS else Kind.IDENTIFIER, word, at)


def _is_letter(char: str) -> bool:
    return char == "_" or char.isalpha() or char.isdecimal()


def _unicode(char: str) -> str:
    code = 0xFFFD if "\ud800" <= char <= "\udfff" else ord(char)
    return f"U+{code:04X} '{chr(code)}'" if chr(code).isprintable() else f"U+{code:04X}"
