# SPDX-License-Identifier: Apache-2.0
"""Tokens → nodes, by recursive descent with one token of look-ahead besides the blanks in between."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from manifests.template import literals
from manifests.template.errors import FunctionError, Misplaced
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
from manifests.template.printf import check_format
from manifests.template.printing import quoted
from manifests.template.scanner import Kind, Token, scan

# Control structures and parentheses within each other. Each level costs a few Python frames in parser and evaluator
# (at most 5, of a thousand).
MAX_DEPTH = 64
# In sight at once; looking one up takes as many steps.
MAX_VARIABLES = 100
# Go runs these too; each would need state beyond one template, and no manifest that was found uses them.
_UNSUPPORTED = frozenset({"define", "template", "block"})
_UNSUPPORTED_FUNCTIONS = frozenset({"call"})
_TERMS = frozenset(
    {
        Kind.BOOL,
        Kind.CHARACTER,
        Kind.DOT,
        Kind.FIELD,
        Kind.IDENTIFIER,
        Kind.NUMBER,
        Kind.NIL,
        Kind.RAW_STRING,
        Kind.STRING,
        Kind.VARIABLE,
        Kind.OPEN,
    }
)


class Parser:
    """One template. `functions`: the names that exist."""

    def __init__(self, text: str, functions: Collection[str]) -> None:
        self._tokens: Iterator[Token] = scan(text)
        self._ahead: list[Token] = []
        self._functions = functions
        self._variables = ["$"]
        self._depth = 0
        self._ranges = 0

    def parse(self) -> Body:
        """The whole template. Raises Misplaced."""
        body, end = self._body()
        if end.kind is not Kind.END:
            raise Misplaced(f"unexpected {{{{{end.text}}}}}", end.position)
        return body

    # ---- tokens

    def _next(self) -> Token:
        return self._ahead.pop() if self._ahead else next(self._tokens)

    def _peek(self) -> Token:
        if not self._ahead:
            self._ahead.append(next(self._tokens))
        return self._ahead[-1]

    def _skip_space(self) -> Token:
        while self._peek().kind is Kind.SPACE:
            self._next()
        return self._peek()

    def _unexpected(self, token: Token, context: str) -> Misplaced:
        if token.kind is Kind.ERROR:
            return Misplaced(token.text, token.position)
        if token.kind is Kind.KEYWORD and token.text in _UNSUPPORTED:
            return _unsupported(token)
        return Misplaced(f"unexpected {token} in {context}", token.position)

    def _expect_right(self, context: str) -> None:
        token = self._skip_space()
        if token.kind is not Kind.RIGHT:
            raise self._unexpected(token, context)
        self._next()

    # ---- text and control

    def _body(self) -> tuple[Body, Token]:
        """Nodes up to the end of the text, or to `end` or `else`, whose keyword is returned."""
        nodes: list[Node] = []
        while True:
            token = self._next()
            match token.kind:
                case Kind.END:
                    return tuple(nodes), token
                case Kind.TEXT:
                    nodes.append(Text(token.position, token.text))
                case Kind.LEFT:
                    node = self._action()
                    if isinstance(node, Token):
                        return tuple(nodes), node
                    nodes.append(node)
                case _:
                    raise self._unexpected(token, "input")

    def _action(self) -> Node | Token:
        token = self._skip_space()
        if token.kind is not Kind.KEYWORD:
            # Variables live until the end of the surrounding control structure.
            return Action(token.position, self._pipeline("command", Kind.RIGHT))
        self._next()
        match token.text:
            case "if" | "with" | "range":
                return self._branch(token)
            case "break" | "continue":
                self._expect_right(f"{{{{{token.text}}}}}")
                if not self._ranges:
                    raise Misplaced(f"{{{{{token.text}}}}} outside {{{{range}}}}", token.position)
                return Leave(token.position, token.text)
            case "end":
                self._expect_right("end")
                return token
            case "else":
                following = self._skip_space()
                if not (following.kind is Kind.KEYWORD and following.text in ("if", "with")):
                    self._expect_right("else")
                return token
        raise _unsupported(token)

    def _branch(self, token: Token) -> Branch:
        """Behind the keyword `token`, up to and including its `end`."""
        keyword = token.text
        known = len(self._variables)
        with_depth = self._enter(token)
        pipeline = self._pipeline(keyword, Kind.RIGHT)
        self._ranges += keyword == "range"
        body, stop = self._body()
        self._ranges -= keyword == "range"
        otherwise: Body = ()
        if stop.kind is Kind.KEYWORD and stop.text == "else":
            following = self._peek()
            if following.kind is Kind.KEYWORD and following.text == keyword and keyword != "range":
                # {{else if x}}…{{end}} is {{else}}{{if x}}…{{end}}{{end}} with one `end` left out.
                self._next()
                otherwise = (self._branch(following),)
            else:
                otherwise, stop = self._body()
                if stop.kind is Kind.KEYWORD and stop.text == "else":
                    raise Misplaced("expected end; found {{else}}", stop.position)
        if stop.kind is Kind.END:
            raise Misplaced("unexpected EOF", stop.position)
        del self._variables[known:]
        self._depth = with_depth - 1
        return Branch(pipeline.position, keyword, pipeline, body, otherwise)

    def _enter(self, token: Token) -> int:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise Misplaced(f"nested more than {MAX_DEPTH} deep", token.position, unsupported=True)
        return self._depth

    # ---- pipelines

    def _pipeline(self, context: str, end: Kind) -> Pipeline:
        start = self._skip_space().position
        declares, assigns = self._declarations(context)
        commands: list[Command] = []
        while True:
            token = self._skip_space()
            if token.kind is end:
                self._next()
                break
            if token.kind not in _TERMS:
                raise self._unexpected(token, context)
            commands.append(self._command())
        if not commands:
            raise Misplaced(f"missing value for {context}", start)
        for stage, command in enumerate(commands[1:], start=2):
            if isinstance(command.operands[0], Dot | Nil | Literal):
                raise Misplaced(f"non executable command in pipeline stage {stage}", command.position)
        return Pipeline(start, tuple(commands), declares, assigns)

    def _declarations(self, context: str) -> tuple[tuple[str, ...], bool]:
        declares: list[str] = []
        while self._skip_space().kind is Kind.VARIABLE:
            variable = self._next()
            spaces = self._next() if self._peek().kind is Kind.SPACE else None
            following = self._peek()
            if following.kind in (Kind.ASSIGN, Kind.DECLARE):
                self._next()
                self._declare(variable)
                return (*declares, variable.text), following.kind is Kind.ASSIGN
            if following.kind is not Kind.OTHER or following.text != ",":
                self._ahead += [spaces, variable] if spaces else [variable]
                break
            self._next()
            declares.append(variable.text)
            self._declare(variable)
            if context != "range" or len(declares) > 1:
                raise Misplaced(f"too many declarations in {context}", variable.position)
            if self._skip_space().kind not in (Kind.VARIABLE, Kind.RIGHT, Kind.CLOSE):
                raise Misplaced("range can only initialize variables", variable.position)
        return tuple(declares), False

    def _declare(self, variable: Token) -> None:
        if len(self._variables) > MAX_VARIABLES:
            raise Misplaced(f"more than {MAX_VARIABLES} variables at once", variable.position, unsupported=True)
        self._variables.append(variable.text)

    def _command(self) -> Command:
        """Operands up to a pipe, which is taken, or up to what closes the pipeline, which is not."""
        start = self._skip_space().position
        operands: list[Operand] = []
        while True:
            self._skip_space()
            operand = self._operand()
            if operand is not None:
                operands.append(operand)
            token = self._peek()
            if token.kind is Kind.SPACE:
                self._next()
                continue
            if token.kind is Kind.PIPE:
                self._next()
            elif token.kind not in (Kind.RIGHT, Kind.CLOSE):
                raise self._unexpected(token, "operand")
            break
        if not operands:
            raise Misplaced("empty command", start)
        _check_printf(operands)
        return Command(start, tuple(operands))

    def _operand(self) -> Operand | None:
        term = self._term()
        if term is None or self._peek().kind is not Kind.FIELD:
            return term
        start = self._peek().position
        names: list[str] = []
        while self._peek().kind is Kind.FIELD:
            names.append(self._next().text[1:])
        match term:
            case FieldChain():
                return FieldChain(start, (*term.names, *names))
            case Variable():
                return Variable(start, term.name, (*term.fields, *names))
            case Pipeline() | Identifier():
                return Chain(start, term, tuple(names))
        raise Misplaced(f"unexpected . after term {quoted(str(term))}", start)

    def _term(self) -> Operand | None:
        token = self._peek()
        if token.kind not in _TERMS:
            return None
        self._next()
        match token.kind:
            case Kind.IDENTIFIER:
                return self._function(token)
            case Kind.DOT:
                return Dot(token.position)
            case Kind.NIL:
                return Nil(token.position)
            case Kind.VARIABLE:
                if token.text not in self._variables:
                    raise Misplaced(f'undefined variable "{token.text}"', token.position)
                return Variable(token.position, token.text)
            case Kind.FIELD:
                return FieldChain(token.position, (token.text[1:],))
            case Kind.BOOL:
                return Literal(token.position, token.text == "true", token.text)
            case Kind.OPEN:
                self._enter(token)
                pipeline = self._pipeline("parenthesized pipeline", Kind.CLOSE)
                self._depth -= 1
                return pipeline
        return _literal(token)

    def _function(self, token: Token) -> Identifier:
        if token.text in _UNSUPPORTED_FUNCTIONS:
            raise _unsupported(token)
        if token.text not in self._functions:
            raise Misplaced(f'function "{token.text}" not defined', token.position)
        return Identifier(token.position, token.text)


def _literal(token: Token) -> Literal:
    try:
        match token.kind:
            case Kind.NUMBER:
                value = literals.number(token.text)
            case Kind.CHARACTER:
                value = literals.character(token.text)
            case _:
                value = literals.string(token.text)
    except ValueError as e:
        raise Misplaced(str(e), token.position, unsupported=isinstance(e, literals.UnsupportedLiteral)) from None
    return Literal(token.position, value, token.text)


def _check_printf(operands: list[Operand]) -> None:
    """A format that is a literal is judged now: the branch that it stands in may not be taken when it is tried."""
    match operands:
        case [Identifier(name="printf"), Literal(value=str(text)) as literal, *_]:
            try:
                check_format(text)
            except FunctionError as e:
                raise Misplaced(f"printf: {e}", literal.position, unsupported=True) from None


def _unsupported(token: Token) -> Misplaced:
    return Misplaced(f'"{token.text}" is not supported in manifests', token.position, unsupported=True)
