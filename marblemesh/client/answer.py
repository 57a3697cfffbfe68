# SPDX-License-Identifier: Apache-2.0
"""The envelope `{"status": …, "data": …, "message": …}` of every reply, opened and read member by member.

As MarbleRun's SDK does, only those three are read, and the members of `data` in any case.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from marblemesh.client.errors import BadAnswer, NoSuchCall, RequestRefused

_UNPRINTABLE = re.compile(r"[^\x20-\x7e\u00a0-\ud7ff]+")
# A Coordinator's message names manifest members, and at most 50 of them.
_MAX_MESSAGE = 4000


@dataclass(frozen=True, slots=True)
class Answer:
    """The `data` of a successful reply. Every reader raises BadAnswer for what the API does not promise."""

    data: object
    request: str

    def member(self, name: str) -> object:
        """A member of `data`, in any case; None if it is not there."""
        if not isinstance(self.data, dict):
            raise BadAnswer(f"{self.request}: want an object as data")
        return next((value for key, value in self.data.items() if str(key).lower() == name.lower()), None)

    def text(self, name: str) -> str:
        value = self.member(name)
        if not isinstance(value, str):
            raise BadAnswer(f"{self.request}: the answer has no text {name!r}, so this is no Coordinator of this API")
        return value

    def integer(self, name: str) -> int:
        value = self.member(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise BadAnswer(f"{self.request}: the answer has no number {name!r}, so this is no Coordinator of this API")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts; null is an empty one."""
        value = self.member(name)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise BadAnswer(f"{self.request}: the answer's {name!r} is no list of texts")
        return tuple(value)

    def text_map(self, name: str) -> Mapping[str, str]:
        """A map of texts; null, or no data at all, is an empty one."""
        value = self.member(name) if self.data is not None else None
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
            raise BadAnswer(f"{self.request}: the answer's {name!r} is no map of texts")
        return {str(key): str(item) for key, item in value.items()}

    def binary(self, name: str) -> bytes:
        """Bytes in base64; null is none."""
        return b"" if self.member(name) is None else self.decoded(self.text(name))

    def decoded(self, text: str) -> bytes:
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise BadAnswer(f"{self.request}: the answer holds invalid base64") from None

    def inner(self, data: object) -> Answer:
        """A part of the answer, to be read by the same rules."""
        return Answer(data, self.request)


def open_envelope(request: str, status: int, reason: str, raw: bytes) -> Answer:
    """The answer to `request` (method and URL, for messages). Raises RequestRefused, NoSuchCall or BadAnswer."""
    try:
        envelope = json.loads(raw)
    except (ValueError, RecursionError):
        envelope = None
    if not isinstance(envelope, Mapping) or not isinstance(envelope.get("status"), str):
        raise BadAnswer(f"{request}: {status} {printable(reason)}: the answer is no Coordinator's")
    if status == 200 and envelope["status"] == "success":
        return Answer(envelope.get("data"), request)
    message = printable(str(envelope.get("message") or ""), _MAX_MESSAGE)
    if status == 401:
        raise RequestRefused(f"{request}: authorizing user: {message}", status, message)
    if status == 405:
        raise NoSuchCall(f"{request}: {status} {printable(reason)}: this Coordinator has no such call", status, message)
    kind = printable(envelope["status"], 20)
    raise RequestRefused(f"{request}: {status} {printable(reason)}: {kind}: {message}", status, message)


def printable(text: str, limit: int = 300) -> str:
    """A stranger's text for a terminal: no control characters, and not a page of it."""
    return _UNPRINTABLE.sub("?", text[:limit])


def encoded(data: bytes) -> str:
    """Bytes as the API carries them in JSON: standard base64 with padding."""
    return base64.b64encode(data).decode("ascii")
