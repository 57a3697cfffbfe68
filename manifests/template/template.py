# SPDX-License-Identifier: Apache-2.0
"""`parse` and `Template`: the package's two doors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from manifests.template.errors import Misplaced, TemplateError, locate
from manifests.template.evaluator import Budget, Evaluator, Failed
from manifests.template.functions import BUILTINS
from manifests.template.names import uses
from manifests.template.nodes import Body
from manifests.template.parser import Parser
from manifests.template.values import Value, encode

# Templates are configuration files; a larger value is rather data that should not be templated. Parsing 256 KiB takes a
# second at worst, if they are nothing but the smallest actions.
MAX_TEMPLATE = 256 * 1024


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template; may be rendered any number of times."""

    name: str
    text: str = field(repr=False)
    body: Body = field(repr=False)

    def render(
        self,
        data: Value,
        functions: Mapping[str, Callable[[Value], Value]] | None = None,
        budget: Budget | None = None,
    ) -> bytes:
        """The template filled in. `functions` take one argument and raise FunctionError. Raises TemplateError."""
        evaluator = Evaluator(data, functions or {}, budget)
        try:
            evaluator.run(self.body)
        except Failed as e:
            line, column = locate(self.text, e.position)
            raise TemplateError(
                f'template: {self.name}:{line}:{column}: executing "{self.name}" at <{e.context}>: {e.message}',
                line,
                column,
            ) from e.__cause__
        return evaluator.output()

    def names(self, *path: str) -> frozenset[str] | None:
        """Which members of the map at `path` (field names from the top) rendering can look at; None: maybe any."""
        return uses(self.body, path)


def parse(text: str | bytes, name: str = "data", functions: Collection[str] = ()) -> Template:
    """Parse a template; `functions` are the names that exist besides the built-in ones. Raises TemplateError."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    if len(text) > MAX_TEMPLATE or len(encode(text)) > MAX_TEMPLATE:
        raise TemplateError(
            f"template: {name}:1:0: larger than {MAX_TEMPLATE} bytes: set NoTemplates for data", 1, 0, unsupported=True
        )
    try:
        body = Parser(text, {*BUILTINS, *functions}).parse()
    except Misplaced as e:
        line, column = locate(text, e.position)
        message = f"template: {name}:{line}:{column}: {e.message}"
        raise TemplateError(message, line, column, unsupported=e.unsupported) from None
    return Template(name, text, body)
