# SPDX-License-Identifier: Apache-2.0
"""Templates of files and environment variables: the part of Go's `text/template` that manifests can use. No I/O.

    parse(text) ─► scanner ─► parser ─► Template ── render(data, functions) ─► evaluator ─► bytes

Grammar (tokens inside actions; blanks and line breaks separate operands, and are otherwise free):

    template   = { text | comment | action }
    action     = "{{" ["- "] ( pipeline | control ) [" -"] "}}"      "- " eats white space before, " -" behind
    comment    = "{{" ["- "] "/*" … "*/" [" -"] "}}"
    control    = "if" pipeline template { "else if" pipeline template } [ "else" template ] "end"
               | "with" pipeline template { "else with" pipeline template } [ "else" template ] "end"
               | "range" [ $i [ "," $e ] (":=" | "=") ] pipeline template [ "else" template ] "end"
               | "break" | "continue"                                each in an action of its own, as "else" and "end"
    pipeline   = [ $x (":=" | "=") ] command { "|" command }         the last value is the next one's last argument
    command    = operand { operand }                                 with arguments only if the first is a function
    operand    = term { .Field }
    term       = "." | .Field | $ | $x | function | "(" pipeline ")" | literal
    literal    = "nil" | "true" | "false" | number | 'c' | "text" | `raw text`

Functions: and or not len index slice print printf println html js urlquery eq ne lt le gt ge, and the caller's own.
Not supported, and refused by name when parsed: define, template, block, call, complex numbers; printf knows the verbs
v s q d x X t c b o U e f g T and the flags - + 0 and blank.

Texts of errors and the way of printing values are Go's. Everything is bounded: size of text, nesting, work, output.
Strings are Go's: bytes, mostly UTF-8. In Python they are `str` whose other bytes are surrogate escapes (PEP 383).
"""

from manifests.template.errors import FunctionError, TemplateError
from manifests.template.evaluator import Budget
from manifests.template.template import Template, parse
from manifests.template.values import Struct, Table, Uint, Value

__all__ = ["Budget", "FunctionError", "Struct", "Table", "Template", "TemplateError", "Uint", "Value", "parse"]
