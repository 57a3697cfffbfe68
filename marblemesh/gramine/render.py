# SPDX-License-Identifier: Apache-2.0
"""A template with `@name@` in it, and a plan: TOML as Gramine reads it, the same for the same input to the byte."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from marblemesh.gramine.errors import GramineError
from marblemesh.gramine.plan import Plan

_PLACE = re.compile(r"@([a-z_]+)@")


def render(template: str, plan: Plan) -> str:
    """Raises GramineError if the template asks for something unknown."""
    settings = plan.settings
    values = {
        "entrypoint": _text(plan.entrypoint),
        "argv": _list(map(_text, plan.argv)),
        "env": "\n".join(_variables(plan)),
        "mounts": "\n".join(f"  {{ path = {_text(path)}, uri = {_uri(uri)} }}," for path, uri in plan.mounts),
        "data_dir": _text(plan.data_dir),
        "data_uri": _uri(plan.data_dir),
        "allowed": _list([_uri(f"{plan.data_dir.rstrip('/')}/")]),
        "trusted": _list(map(_uri, plan.trusted)),
        "start_dir": _text(settings.start_dir),
        "enclave_size": _text(settings.enclave_size),
        "max_threads": str(settings.max_threads),
        "product_id": str(settings.product_id),
        "security_version": str(settings.security_version),
    }

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise GramineError(f"the template asks for {match[0]!r}, known are: {', '.join(sorted(values))}")
        return values[match[1]]

    return "\n".join(_PLACE.sub(value, line) for line in template.splitlines() if not line.startswith("##")) + "\n"


def _variables(plan: Plan) -> Iterable[str]:
    for name, value in sorted(plan.env.items()):
        yield f"loader.env.{name} = {_text(value)}"
    for name in plan.passed:
        yield f"loader.env.{name} = {{ passthrough = true }}"


def _text(value: str) -> str:
    """A TOML basic string; what JSON writes is one, as long as everything is printable."""
    if not value.isprintable():
        raise GramineError(f"{value!r} has a character that a manifest cannot hold")
    return json.dumps(value, ensure_ascii=False)


def _uri(path: str) -> str:
    return _text(f"file:{path}")


def _list(items: Iterable[str]) -> str:
    return "[\n" + "".join(f"  {item},\n" for item in items) + "]"
