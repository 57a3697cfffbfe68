# SPDX-License-Identifier: Apache-2.0
"""What a client says about a resource may contain the resource: nothing of a key survives."""

from __future__ import annotations

import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sds.discovery import redact
from sds.keys import PrivateKey

KEY = PrivateKey.generate_p256().pem.decode()
LINES = [line for line in KEY.splitlines() if not line.startswith("-")]


def leaks(text: str) -> list[str]:
    """Twelve characters of the key in a row, anywhere."""
    body = "".join(LINES)
    return [body[i : i + 12] for i in range(len(body) - 12) if body[i : i + 12] in re.sub(r"\\n|\s", "", text)]


@pytest.mark.parametrize(
    "text",
    [
        f"constraint failed: {KEY} in secret",
        'private_key { inline_string: "' + KEY.replace("\n", "\\n") + '" }',
        "cut off: " + KEY[: len(KEY) // 2],
        KEY[40:],
        "lines only: " + "\n".join(LINES),
        "hex " + base64.b64decode("".join(LINES)).hex(),
        "escaped " + "".join(f"\\{byte:03o}" for byte in KEY.encode()),
        "x" * 16_300 + KEY,
    ],
    ids=["whole", "escaped", "head", "tail", "body", "hex", "octal", "at the limit"],
)
def test_keys_are_removed_in_every_form(text: str) -> None:
    clean = redact(text)
    assert leaks(clean) == []
    assert len(clean) <= 256


def test_what_an_operator_needs_survives() -> None:
    text = "Proto constraint validation failed (SecretValidationError.TlsCertificate): value is required"
    assert redact(text) == text
    assert redact("Unexpected SDS secret (expecting a): zzz") == "Unexpected SDS secret (expecting a): zzz"


def test_one_line_of_printable_text() -> None:
    assert redact("a\nb\x1b[31mc\u202e") == "a b [31mc"


@given(st.text(max_size=2000))
def test_always_short_and_printable(text: str) -> None:
    clean = redact(text)
    assert len(clean) <= 256
    assert clean.isascii()
    assert clean.isprintable()
