# SPDX-License-Identifier: Apache-2.0
"""Groups of flags that many verbs share: a verb has one parameter for the group, the command line has its flags."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import typer

Verb = Callable[..., None]
Options = Mapping[str, tuple[Any, Any]]
"""Annotation (with `typer.Option`) and default, by parameter name."""


def injected(parameter: str, options: Options, build: Callable[[typer.Context, dict[str, Any]], object]) -> Any:
    """A decorator: replaces the verb's `parameter` by the flags in `options`; `build` makes the value from them.

    `build` raises typer.BadParameter for flags that contradict each other, before the verb does anything.
    """

    def decorate(verb: Verb) -> Verb:
        own = inspect.signature(verb, eval_str=True)

        @functools.wraps(verb)
        def wrapper(ctx: typer.Context, **given: Any) -> None:
            values = {name: given.pop(name) for name in options}
            context = {"ctx": ctx} if "ctx" in own.parameters else {}
            verb(**context, **{parameter: build(ctx, values)}, **given)

        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [
            inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
            *(item.replace(kind=keyword) for item in own.parameters.values() if item.name not in (parameter, "ctx")),
            *(
                inspect.Parameter(name, keyword, default=default, annotation=annotation)
                for name, (annotation, default) in options.items()
            ),
        ]
        # typer reads both, and would otherwise look through functools.wraps at the verb.
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {item.name: item.annotation for item in parameters}
        return wrapper

    return decorate
