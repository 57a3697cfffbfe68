# SPDX-License-Identifier: Apache-2.0
"""Runs a parsed template over data, within limits, and says where it failed.

`self._at` is the node that is being looked at, as Go keeps it: errors quote its source and position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

from manifests.template.errors import FunctionError
from manifests.template.functions import BUILTINS, MISSING, Builtin, Missing
from manifests.template.nodes import (
    Action,
    Body,
    Branch,
    Chain,
    Command,
    Dot,
    FieldChain,
    Identifier,
    Leave,
    Literal,
    Nil,
    Node,
    Operand,
    Pipeline,
    Text,
    Variable,
)
from manifests.template.printing import MAX_OUTPUT, Printer
from manifests.template.values import Byte, Struct, Table, Value, encode, size, truth, type_name

# Work is counted in bytes looked at or written; a step counts as 512, because it takes as long (less than 1 µs). 64 MiB
# are 131 000 steps, or about a tenth of a second.
STEP = 512
MAX_WORK = 64 * 1024 * 1024
# Entries of a map are sorted before the first one is seen.
_SORT = 64
# Of the source of what failed; the place says where the rest is.
_MAX_CONTEXT = 200

_Final = Value | Missing


class Failed(Exception):
    """`context` is the source of what failed."""

    def __init__(self, message: str, context: str, position: int) -> None:
        self.message = message
        self.context = context
        self.position = position
        super().__init__(message)


class _BreakLoop(Exception):
    pass


class _ContinueLoop(Exception):
    pass


class Budget:
    """Work that one rendering, or several that share it, may take. Not for several threads."""

    def __init__(self, work: int = MAX_WORK) -> None:
        self.left = work


class Evaluator:
    """One rendering."""

    def __init__(
        self, data: Value, functions: Mapping[str, Callable[[Value], Value]], budget: Budget | None = None
    ) -> None:
        self._budget = budget or Budget()
        self._data = data
        self._functions = functions
        self._variables: list[tuple[str, Value]] = [("$", data)]
        self._written: list[bytes] = []
        self._size = 0
        self._at: Node | Operand | Command = Dot(0)

    def run(self, body: Body) -> None:
        """Render. Raises Failed."""
        self._body(body, self._data)

    def output(self) -> bytes:
        """What was written."""
        return b"".join(self._written)

    # ---- limits and errors

    def _fail(self, message: str) -> NoReturn:
        raise Failed(message, _context(self._at), self._at.position)

    def _charge(self, amount: int) -> None:
        self._budget.left -= amount
        if self._budget.left < 0:
            self._fail("too much work: the template loops too often or handles too much data")

    def _write(self, text: str) -> None:
        data = encode(text)
        self._size += len(data)
        self._charge(len(data))
        if self._size > MAX_OUTPUT:
            self._fail(f"output is larger than {MAX_OUTPUT} bytes")
        self._written.append(data)

    # ---- nodes

    def _body(self, body: Body, dot: Value) -> None:
        for node in body:
            self._charge(STEP)
            if not isinstance(node, Text):
                self._at = node
            match node:
                case Text():
                    self._write(node.text)
                case Action():
                    value = self._pipeline(node.pipeline, dot)
                    if not node.pipeline.declares:
                        self._at = node
                        self._write("<no value>" if value is None else self._printed(value))
                case Branch(keyword="range"):
                    self._range(node, dot)
                case Branch():
                    self._if_or_with(node, dot)
                case Leave(keyword="break"):
                    raise _BreakLoop
                case Leave():
                    raise _ContinueLoop

    def _printed(self, value: Value) -> str:
        try:
            return Printer().print(value)
        except FunctionError as e:
            self._fail(str(e))

    def _if_or_with(self, node: Branch, dot: Value) -> None:
        mark = len(self._variables)
        value = self._pipeline(node.pipeline, dot)
        if truth(value):
            self._body(node.body, value if node.keyword == "with" else dot)
        else:
            self._body(node.otherwise, dot)
        del self._variables[mark:]

    def _range(self, node: Branch, dot: Value) -> None:
        mark = len(self._variables)
        value = self._pipeline(node.pipeline, dot)
        self._charge(size(value) * _SORT)
        inside = len(self._variables)
        ran = False
        for index, element in self._items(node.pipeline, value):
            ran = True
            self._charge(STEP)
            self._bind(node.pipeline, index, element)
            try:
                self._body(node.body, element)
            except _ContinueLoop:
                pass
            except _BreakLoop:
                break
            finally:
                del self._variables[inside:]
        if not ran:
            self._body(node.otherwise, dot)
        del self._variables[mark:]

    def _items(self, pipeline: Pipeline, value: Value) -> Iterator[tuple[Value, Value]]:
        match value:
            case None:
                pass
            case int() if not isinstance(value, bool):
                if len(pipeline.declares) > 1:
                    self._fail(f"can't use {value} to iterate over more than one variable")
                for number in range(value):
                    yield None, number
            case bytes():
                for index, byte in enumerate(value):
                    yield index, Byte(byte)
            case tuple():
                yield from enumerate(value)
            case Table():
                for name in sorted(value.entries, key=encode):
                    yield name, value.entries[name]
            case _:
                self._fail(f"range can't iterate over {self._printed(value)}")

    def _bind(self, pipeline: Pipeline, index: Value, element: Value) -> None:
        """Give the loop's variables their values; with one variable it is the element, with two the index is first."""
        names = pipeline.declares
        values = (element,) if len(names) == 1 else (index, element)
        for place, name in enumerate(names):
            if pipeline.assigns:
                self._assign(name, values[place])
            else:
                self._variables[len(self._variables) - len(names) + place] = (name, values[place])

    # ---- pipelines

    def _pipeline(self, pipeline: Pipeline, dot: Value) -> Value:
        self._at = pipeline
        value: _Final = MISSING
        for command in pipeline.commands:
            value = self._command(command, dot, value)
        result: Value = None if isinstance(value, Missing) else value
        for name in pipeline.declares:
            if pipeline.assigns:
                self._assign(name, result)
            else:
                self._variables.append((name, result))
        return result

    def _assign(self, name: str, value: Value) -> None:
        for place in range(len(self._variables) - 1, -1, -1):
            if self._variables[place][0] == name:
                self._variables[place] = (name, value)
                return
        self._fail(f"undefined variable: {name}")

    def _command(self, command: Command, dot: Value, final: _Final) -> Value:
        self._charge(STEP)
        first = command.operands[0]
        has_arguments = len(command.operands) > 1 or not isinstance(final, Missing)
        match first:
            case Identifier():
                return self._function(first.name, command, command.operands[1:], dot, final)
            case FieldChain() | Chain() | Variable():
                return self._chain(first, dot, has_arguments)
            case Pipeline():
                if has_arguments:
                    self._fail(f"can't give argument to non-function {first}")
                return self._pipeline(first, dot)
        self._at = first
        if has_arguments:
            self._fail(f"can't give argument to non-function {first}")
        if isinstance(first, Nil):
            self._fail("nil is not a command")
        return dot if isinstance(first, Dot) else first.value

    def _operand(self, operand: Operand, dot: Value) -> Value:
        """An argument's value."""
        self._charge(STEP)
        self._at = operand
        match operand:
            case Dot():
                return dot
            case Nil():
                return None
            case Literal():
                return operand.value
            case Identifier():
                return self._function(operand.name, operand, (), dot, MISSING)
            case Pipeline():
                return self._pipeline(operand, dot)
            case _:
                return self._chain(operand, dot, has_arguments=False)

    def _chain(self, operand: FieldChain | Chain | Variable, dot: Value, has_arguments: bool) -> Value:
        self._at = operand
        match operand:
            case FieldChain():
                value, names = dot, operand.names
            case Variable():
                value, names = self._variable(operand.name), operand.fields
                if not names and has_arguments:
                    self._fail(f"can't give argument to non-function {operand}")
            case _:
                value, names = self._operand(operand.of, dot), operand.fields
        self._charge(STEP * len(names))
        for place, name in enumerate(names):
            value = self._field(value, name, has_arguments and place == len(names) - 1)
        return value

    def _variable(self, name: str) -> Value:
        for known, value in reversed(self._variables):
            if known == name:
                return value
        return self._fail(f"undefined variable: {name}")

    def _field(self, value: Value, name: str, has_arguments: bool) -> Value:
        match value:
            case None:
                return None
            case Struct():
                if name in value.fields:
                    if has_arguments:
                        self._fail(f"{name} has arguments but cannot be invoked as function")
                    return value.fields[name]
            case Table():
                if has_arguments:
                    self._fail(f"{name} is not a method but has arguments")
                return value.entries.get(name)
        return self._fail(f"can't evaluate field {name} in type {type_name(value)}")

    # ---- functions

    def _function(
        self, name: str, node: Command | Identifier, operands: tuple[Operand, ...], dot: Value, final: _Final
    ) -> Value:
        self._at = node
        builtin = BUILTINS.get(name)
        if builtin is None:
            custom = self._functions.get(name)
            if custom is None:
                self._fail(f'"{name}" is not a defined function')
            builtin = Builtin(custom, 1, 1)
        self._at = node.operands[0] if isinstance(node, Command) else node
        self._check_count(name, builtin, len(operands), final)
        if name in ("and", "or"):
            return self._and_or(operands, dot, final, name == "or")
        arguments = []
        for place, operand in enumerate(operands):
            value = self._operand(operand, dot)
            self._check_format(builtin, place, operand, value)
            arguments.append(value)
        if not isinstance(final, Missing):
            self._check_format(builtin, len(operands), None, final)
            arguments.append(final)
        self._charge(sum(size(argument) for argument in arguments))
        try:
            result = builtin.call(*arguments)
        except FunctionError as e:
            self._at = node
            raise Failed(f"error calling {name}: {e}", _context(node), node.position) from e.__cause__
        self._charge(size(result))
        return result

    def _and_or(self, operands: tuple[Operand, ...], dot: Value, final: _Final, stop_at: bool) -> Value:
        """The first operand that decides, or the last one; later ones are not evaluated."""
        value: Value = None
        for operand in operands:
            value = self._operand(operand, dot)
            if truth(value) == stop_at:
                return value
        return value if isinstance(final, Missing) else final

    def _check_count(self, name: str, builtin: Builtin, given: int, final: _Final) -> None:
        total = given + (not isinstance(final, Missing))
        if builtin.most is None and total < builtin.least:
            self._fail(f"wrong number of args for {name}: want at least {builtin.least} got {given}")
        if builtin.most is not None and total != builtin.most:
            self._fail(f"wrong number of args for {name}: want {builtin.most} got {total}")

    def _check_format(self, builtin: Builtin, place: int, operand: Operand | None, value: Value) -> None:
        """printf's format is the only argument with a type of its own."""
        if not builtin.formats or place or isinstance(value, str):
            return
        if isinstance(operand, Nil):
            self._fail("cannot assign nil to string")
        if isinstance(operand, Literal):
            self._fail(f"expected string; found {operand}")
        if value is None:
            self._fail("invalid value; expected string")
        self._fail(f"wrong type for value; expected string; got {type_name(value)}")


def _context(node: Node | Operand | Command) -> str:
    source = str(node)
    return source if len(source) <= _MAX_CONTEXT else f"{source[:_MAX_CONTEXT]}…"
