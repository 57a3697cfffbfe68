# SPDX-License-Identifier: Apache-2.0
"""Where a worker meets its app."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.address import TcpAddress, UnixAddress, parse_address, parse_port


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("unix:/run/app.sock", UnixAddress("/run/app.sock")),
        ("unix:app.sock", UnixAddress("app.sock")),
        ("tcp:127.0.0.1:80", TcpAddress("127.0.0.1", 80)),
        ("tcp:localhost:80", TcpAddress("127.0.0.1", 80)),
        ("tcp:[::1]:80", TcpAddress("::1", 80)),
    ],
)
def test_addresses(text: str, value: UnixAddress | TcpAddress) -> None:
    assert parse_address(text) == value
    assert parse_address(str(value)) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("/run/app.sock", "want unix:<path> or tcp:"),
        ("http:x", "want unix:<path> or tcp:"),
        ("unix:", "want the path of a file"),
        ("unix:/run/", "want the path of a file"),
        ("unix:@abstract", "abstract sockets"),
        ("unix:../other/x.sock", "no '..'"),
        ("unix:/a\0b", "no control characters"),
        ("unix:/" + "x" * 107, "108 bytes"),
        ("tcp:8080", "want 127.0.0.1:<port>"),
        ("tcp:10.0.0.1:80", "must stay in the TEE"),
        ("tcp:example.org:80", "must stay in the TEE"),
        ("tcp:0.0.0.0:80", "must stay in the TEE"),
        ("tcp:::1%lo:80", "must stay in the TEE"),
        ("tcp:127.0.0.1:0", "invalid port"),
        ("tcp:127.0.0.1:65536", "invalid port"),
    ],
)
def test_no_addresses(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_address(text)


@given(st.text(max_size=6))
def test_a_port_is_its_own_plain_spelling(text: str) -> None:
    try:
        port = parse_port(text)
    except ValueError:
        assert text not in {str(number) for number in range(1, 65536)}
    else:
        assert str(port) == text
