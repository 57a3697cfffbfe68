# SPDX-License-Identifier: Apache-2.0
"""The parsed template. `str(node)` is the source as Go writes it again, which is how errors quote it."""

from __future__ import annotations

from dataclasses import dataclass, field

from manifests.template.values import Value


@dataclass(frozen=True, slots=True)
class Dot:
    position: int

    def __str__(self) -> str:
        return "."


@dataclass(frozen=True, slots=True)
class Nil:
    position: int

    def __str__(self) -> str:
        return "nil"


@dataclass(frozen=True, slots=True)
class Literal:
    """A bool, number or string; `source` as it was written."""

    position: int
    value: Value
    source: str

    def __str__(self) -> str:
        return self.source


@dataclass(frozen=True, slots=True)
class Identifier:
    """A function."""

    position: int
    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class FieldChain:
    """.a.b of the current dot."""

    position: int
    names: tuple[str, ...]

    def __str__(self) -> str:
        return "".join(f".{name}" for name in self.names)


@dataclass(frozen=True, slots=True)
class Variable:
    """$x, and fields of it."""

    position: int
    name: str
    fields: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ".".join((self.name, *self.fields))


@dataclass(frozen=True, slots=True)
class Chain:
    """Fields of a parenthesised pipeline, or of a function's result."""

    position: int
    of: Pipeline | Identifier
    fields: tuple[str, ...]

    def __str__(self) -> str:
        of = f"({self.of})" if isinstance(self.of, Pipeline) else str(self.of)
        return of + "".join(f".{name}" for name in self.fields)


@dataclass(frozen=True, slots=True)
class Command:
    position: int
    operands: tuple[Operand, ...]

    def __str__(self) -> str:
        return " ".join(f"({o})" if isinstance(o, Pipeline) else str(o) for o in self.operands)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """`declares` are the variables on the left; `assigns`: they exist already (=, not :=)."""

    position: int
    commands: tuple[Command, ...]
    declares: tuple[str, ...] = ()
    assigns: bool = False

    def __str__(self) -> str:
        left = f"{', '.join(self.declares)} {'=' if self.assigns else ':='} " if self.declares else ""
        return left + " | ".join(str(command) for command in self.commands)


Operand = Dot | Nil | Literal | Identifier | FieldChain | Variable | Chain | Pipeline


@dataclass(frozen=True, slots=True)
class Text:
    position: int
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Action:
    position: int
    pipeline: Pipeline

    def __str__(self) -> str:
        return f"{{{{{self.pipeline}}}}}"


@dataclass(frozen=True, slots=True)
class Branch:
    """if, with or range."""

    position: int
    keyword: str
    pipeline: Pipeline
    body: Body
    otherwise: Body

    def __str__(self) -> str:
        return f"{{{{{self.keyword} {self.pipeline}}}}}"


@dataclass(frozen=True, slots=True)
class Leave:
    """break or continue."""

    position: int
    keyword: str

    def __str__(self) -> str:
        return f"{{{{{self.keyword}}}}}"


Node = Text | Action | Branch | Leave
Body = tuple[Node, ...]
