# SPDX-License-Identifier: Apache-2.0
"""Which members of a map a template can look at, found without rendering it.

Only two forms name a member for certain: a chain that starts at the top (`.Secrets.a`, `$.Secrets.a`) and `index` with
a literal. Whatever else could reach the map (the map itself as a value, dot in any form) makes the answer "any". A
chain from a dot that `with` or `range` has moved is counted as if it started at the top: a name too many does no harm.
"""

from __future__ import annotations

from collections.abc import Iterator

from manifests.template.nodes import (
    Action,
    Body,
    Branch,
    Chain,
    Command,
    Dot,
    FieldChain,
    Identifier,
    Literal,
    Operand,
    Pipeline,
    Variable,
)


class _AnyError(Exception):
    """The map may be looked at as a whole."""


def uses(body: Body, path: tuple[str, ...]) -> frozenset[str] | None:
    """The members of the map at `path` that may be looked at; None if any may be."""
    found: set[str] = set()
    try:
        for pipeline in _pipelines(body):
            _pipeline(pipeline, path, found)
    except _AnyError:
        return None
    return frozenset(found)


def _pipelines(body: Body) -> Iterator[Pipeline]:
    for node in body:
        match node:
            case Action():
                yield node.pipeline
            case Branch():
                yield node.pipeline
                yield from _pipelines(node.body)
                yield from _pipelines(node.otherwise)


def _pipeline(pipeline: Pipeline, path: tuple[str, ...], found: set[str]) -> None:
    for command in pipeline.commands:
        operands = _without_index(command, path, found)
        for operand in operands:
            _operand(operand, path, found)


def _without_index(command: Command, path: tuple[str, ...], found: set[str]) -> tuple[Operand, ...]:
    """The operands but for `index .Secrets "name"`, which is taken into account here."""
    match command.operands:
        case (Identifier(name="index"), FieldChain() | Variable() as table, Literal(value=str(name)), *rest) if (
            _from_top(table) == path
        ):
            found.add(name)
            return tuple(rest)
    return command.operands


def _operand(operand: Operand, path: tuple[str, ...], found: set[str]) -> None:
    match operand:
        case Pipeline():
            _pipeline(operand, path, found)
        case Chain():
            if isinstance(operand.of, Pipeline):
                _pipeline(operand.of, path, found)
        case Dot():
            raise _AnyError
        case FieldChain() | Variable():
            names = _from_top(operand)
            if names is None:
                return
            if len(names) > len(path) and names[: len(path)] == path:
                found.add(names[len(path)])
            elif names == path[: len(names)]:
                raise _AnyError


def _from_top(operand: FieldChain | Variable) -> tuple[str, ...] | None:
    """The chain as seen from the top; None for variables that a pipeline was assigned to (it was looked at itself)."""
    if isinstance(operand, FieldChain):
        return operand.names
    return operand.fields if operand.name == "$" else None
