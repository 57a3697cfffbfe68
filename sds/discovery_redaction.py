# SPDX-License-Identifier: Apache-2.0
"""Make the text of a NACK safe to log, store and show.

Envoy puts the whole rejected message into `error_detail` when a field constraint fails, with the private key of a
Secret in clear. So whatever a client says about a resource is cleaned before anybody sees it: PEM blocks (whole, cut
off at either end), long base64 or hexadecimal runs, escaped bytes, control characters; then it is cut.
"""

from __future__ import annotations

import re
import string

MAX_TEXT = 256
# Longer input is not looked at; what stands out after the cut is at most the tail of a block, which is dropped too.
_MAX_INPUT = 16 * 1024
_MARK = "[redacted]"
_BASE64 = string.ascii_letters + string.digits + "+/=_-\\"

_PEM = re.compile(r"-----BEGIN.*?(?:-----END[^-]*-----|\Z)", re.DOTALL)
_PEM_TAIL = re.compile(r"\A.*-----END[^-]*(?:-----|\Z)", re.DOTALL)
# 24 characters of base64 are 18 bytes: less than that of a P-256 key is no help in guessing the rest. Random base64 of
# that length without a digit, '+' or '=' is one in 70; names of messages and fields have none of them and survive.
_RUN = re.compile(r"[A-Za-z0-9+/=_-]{24,}")
_NO_WORD = re.compile(r"[0-9+=]")
_MAX_WORD = 48
_ESCAPES = re.compile(r"(?:\\(?:x[0-9a-fA-F]{2}|[0-7]{3}|u[0-9a-fA-F]{4})){4,}[^\s\"']*")
_CONTROL = re.compile(r"[^\x20-\x7e]+")


def redact(text: str) -> str:
    """The text without anything that could be key material, in one line of at most 256 ASCII characters."""
    cut = text[:_MAX_INPUT]
    if len(text) > _MAX_INPUT:
        cut = cut.rstrip(_BASE64)
    cut = _PEM.sub(_MARK, cut)
    cut = _PEM_TAIL.sub(_MARK, cut)
    cut = _ESCAPES.sub(_MARK, cut)
    # A PEM body without its first and last line: 64-character lines, then a short one that no longer stands alone.
    cut = re.sub(r"[A-Za-z0-9+/=]{40,}(?:(?:\\n|\s)+[A-Za-z0-9+/=]{40,})*(?:(?:\\n|\s)+[A-Za-z0-9+/=]+)?", _MARK, cut)
    cut = _RUN.sub(_judge, cut)
    cut = _CONTROL.sub(" ", cut).strip()
    return cut if len(cut) <= MAX_TEXT else f"{cut[: MAX_TEXT - 3]}..."


def _judge(run: re.Match[str]) -> str:
    text = run[0]
    return _MARK if len(text) > _MAX_WORD or _NO_WORD.search(text) else text
