# SPDX-License-Identifier: Apache-2.0
"""Fuzz target: whatever the text, parsing and rendering end soon, with bytes or with a TemplateError that has a place.

python tests/fuzz/fuzz_template.py      needs atheris
"""

from __future__ import annotations

from manifests.template import Budget, TemplateError, parse
from tests.fuzz.driver import run
from tests.kit.template_data import DATA, FUNCTIONS

# Little work is allowed, so that the fuzzer is not slowed down by loops.
_WORK = 1024 * 1024


def fuzz_one(data: bytes) -> None:
    try:
        template = parse(data, functions=FUNCTIONS)
        names = template.names("Secrets")
        output = template.render(DATA, FUNCTIONS, Budget(_WORK))
    except TemplateError as error:
        if error.line < 1 or error.column < 0 or not str(error).startswith("template: data:"):
            raise AssertionError(f"refused without a place: {error!r}") from error
        return
    if b"{{" not in data and output != data:
        raise AssertionError("text without actions was changed")
    if names is not None and not all(isinstance(name, str) for name in names):
        raise AssertionError("a name is no string")


if __name__ == "__main__":
    run(fuzz_one)
