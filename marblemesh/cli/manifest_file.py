# SPDX-License-Identifier: Apache-2.0
"""A manifest on disk. JSON is uploaded byte for byte; YAML is converted first, since a Coordinator takes JSON only.

The YAML is that of JSON: null, true and false, decimal numbers, text. YAML 1.1 would read `no` as false, `22:30` as
1350 and a date as a date, none of which a manifest means. Aliases are refused: nine lines of them are a gigabyte.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from manifests.json_text import MAX_BYTES
from marblemesh.cli.errors import CliError
from marblemesh.cli.files import read_file

NoCheck = Annotated[
    bool, typer.Option("--no-check", help="Upload without checking here; the Coordinator checks in any case.")
]
# The pure Python parser reads about 300 KB a second.
MAX_YAML = 1024 * 1024
_YAML_SUFFIXES = (".yaml", ".yml")
# More digits are no integer of a manifest, and slow to convert.
_MAX_DIGITS = 20


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """`raw` is what is uploaded; `fingerprint` its hex SHA-256, by which the mesh is known."""

    path: Path
    raw: bytes = field(repr=False)
    is_yaml: bool

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.raw).hexdigest()


def read_manifest(path: Path) -> ManifestFile:
    """Read and, if it is YAML (by its name), convert. Raises CliError; whether it is a good manifest is not checked."""
    raw = read_file(path, "manifest", MAX_BYTES)
    if path.suffix.lower() not in _YAML_SUFFIXES:
        return ManifestFile(path, raw, is_yaml=False)
    if len(raw) > MAX_YAML:
        raise CliError(f"manifest {str(path)!r} has more than {MAX_YAML} bytes of YAML: convert it to JSON yourself")
    return ManifestFile(path, _to_json(path, raw), is_yaml=True)


def _to_json(path: Path, raw: bytes) -> bytes:
    try:
        value = yaml.load(raw, Loader=_JsonLoader)  # noqa: S506 - a SafeLoader, narrowed further
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise CliError(f"{place}: invalid YAML: {_one_line(error.problem or error.context or 'unreadable')}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CliError(f"{path}: invalid YAML: {_one_line(str(error))}") from None
    except RecursionError:
        raise CliError(f"{path}: invalid YAML: nested too deep") from None
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except (ValueError, RecursionError) as error:
        raise CliError(f"{path}: cannot be written as JSON: {_one_line(str(error))}") from None


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


class _JsonLoader(yaml.SafeLoader):
    """YAML's syntax with JSON's values."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - as PyYAML declares it

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not supported", mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        for key_node, value_node in node.value if isinstance(node, yaml.MappingNode) else ():
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                problem = f"member name {str(key)[:40]!r} is no text, put it in quotes"
            elif key in result:
                problem = f"member {key[:80]!r} occurs twice"
            else:
                result[key] = self.construct_object(value_node, deep=deep)
                continue
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        return result


def _integer(loader: yaml.SafeLoader, node: yaml.Node) -> int:
    if len(node.value) > _MAX_DIGITS:
        raise yaml.constructor.ConstructorError(None, None, "number is too long", node.start_mark)
    return int(node.value)


for _tag, _pattern, _first in (
    ("null", r"(?:null|~|)", ["n", "~", ""]),
    ("bool", r"(?:true|false)", ["t", "f"]),
    ("int", r"-?(?:0|[1-9][0-9]*)", list("-0123456789")),
    ("float", r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?", list("-0123456789")),
):
    _JsonLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^{_pattern}\\Z"), _first)
_JsonLoader.add_constructor("tag:yaml.org,2002:int", _integer)
