# SPDX-License-Identifier: Apache-2.0
"""A secret under a second name, without a second copy of its content: every instance has two names for its identity."""

from __future__ import annotations

from sds.discovery_wire import text_field
from sds.resources import Resource


class Alias(Resource):
    """The content of another secret; put together anew each time that it is sent."""

    __slots__ = ("_of",)
    _of: Resource

    def __init__(self, name: str, of: Resource) -> None:
        found = {"type_url": of.type_url, "name": name, "version": of.version, "rank": of.rank, "_of": of}
        for attribute, value in {**found, "_in_state": None, "_in_delta": None}.items():
            object.__setattr__(self, attribute, value)

    @property
    def body(self) -> bytes:
        # Serialised deterministically a Secret begins with its name, field 1.
        return text_field(1, self.name) + self._of.body.removeprefix(text_field(1, self._of.name))
