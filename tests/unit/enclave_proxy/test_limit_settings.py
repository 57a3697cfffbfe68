# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import fields

import pytest

from enclave_proxy.limit_settings import parse_limits
from enclave_proxy.limits import Limits


def test_what_is_not_named_keeps_its_default() -> None:
    assert parse_limits("") == Limits()
    assert parse_limits("handshake-timeout=2.5, connections=16000") == Limits(handshake_timeout=2.5, connections=16000)


@pytest.mark.parametrize("field", [field for field in fields(Limits) if field.name != "drain"], ids=lambda f: f.name)
def test_every_bound_can_be_set(field: object) -> None:
    name: str = field.name  # type: ignore[attr-defined]
    assert getattr(parse_limits(f"{name.replace('_', '-')}=7"), name) == 7


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("connections", "'connections' is none of handshake-timeout=, "),
        ("connection=1", "'connection=1' is none of"),
        ("drain=1", "is none of"),
        ("connections=0", r"connections: '0' is not a number within 1\.\.1000000"),
        ("connections=1e3", "connections: '1e3' is not a number"),
        ("attempts=17", r"attempts: '17' is not a number within 1\.\.16"),
        ("idle-timeout=nan", r"idle-timeout: nan is not within 0\.\.604800 seconds"),
        ("idle-timeout=-1", "idle-timeout: -1 is not within"),
        ("connect-timeout=0", r"connect-timeout: 0 is not within 0\.05\.\."),
        ("linger=soon", "linger: 'soon' is not a number of seconds"),
        ("linger=1,linger=2", "linger is given twice"),
    ],
)
def test_a_wrong_bound_is_named_with_what_may_be(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_limits(text)
