# SPDX-License-Identifier: Apache-2.0
"""The JSON Schema of a manifest, for editors and for whoever generates one. `manifest.schema.json` is a copy of it.

It describes the shape and the documented spelling. Two things it cannot say: member names are matched in any case, and
null stands for an absent member. The rules between members are `check`'s.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from manifests.wire import ManifestWire

SCHEMA_FILE = Path(__file__).with_name("manifest.schema.json")


def json_schema() -> dict[str, Any]:
    """A JSON Schema (draft 2020-12) that every manifest in the documented spelling satisfies."""
    schema = ManifestWire.model_json_schema(by_alias=True)
    _drop_titles(schema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Marble manifest",
        "required": ["Packages", "Marbles"],
        **schema,
    }


def schema_text() -> str:
    """What `manifest.schema.json` holds."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def _drop_titles(node: object) -> None:
    """pydantic titles every member with its own name in title case; the name says it already."""
    if isinstance(node, dict):
        for value in node.values():
            _drop_titles(value)
        # A member *called* title would be a schema, not a string.
        if isinstance(node.get("title"), str):
            del node["title"]
    elif isinstance(node, list):
        for item in node:
            _drop_titles(item)
