# SPDX-License-Identifier: Apache-2.0
"""Linkerd's stand-in, without a network: what it reads in a first flight, what its messages and rules look like."""

from __future__ import annotations

import pytest

from tests.kit.linkerd_hello import Header, Incomplete, NotTls, header, server_name
from tests.kit.linkerd_peers import client_hello
from tests.kit.linkerd_rules import Rules
from tests.kit.linkerd_wire import CertifyRequest, CertifyResponse, Endpoint, Profile, ServerPolicy, decode


def test_a_server_name_is_found_as_soon_as_the_client_hello_is_whole() -> None:
    hello = client_hello("db.marble.example", 700)
    assert server_name(hello) == "db.marble.example"
    assert server_name(hello + b"more") == "db.marble.example"
    for size in range(len(hello)):
        with pytest.raises(Incomplete):
            server_name(hello[:size])


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x00\x00\x05", b"\x17\x03\x03\x00\x00", b"\x80\x2e\x01"]
)
def test_other_protocols_and_old_records_are_no_tls(data: bytes) -> None:
    with pytest.raises(NotTls):
        server_name(data)


def test_a_record_that_holds_no_whole_hello_is_no_tls() -> None:
    with pytest.raises(NotTls):
        server_name(b"\x16\x03\x01\x00\x04\x01\x00\x00\x00")
    with pytest.raises(NotTls):
        server_name(b"\x16\x03\x01\x00\x04\x02\x00\x00\x00")


def test_a_transport_header_comes_back_with_what_follows_it() -> None:
    data = Header(8443).encode()
    assert data[:23] == b"transport.l5d.io/v1\r\n\r\n"
    assert data[23:] == bytes.fromhex("00000003 08fb41")
    assert header(data + b"app") == (Header(8443), b"app")
    for size in range(len(data)):
        with pytest.raises(Incomplete):
            header(data[:size])
    with pytest.raises(ValueError, match="no transport header"):
        header(b"transport.l5d.io/v2\r\n\r\n")
    with pytest.raises(ValueError, match="of 4294967295 bytes"):
        header(data[:23] + b"\xff\xff\xff\xff")


def test_an_ipv4_address_goes_as_one_number() -> None:
    """10.77.0.2 is 0x0a4d0002, in protobuf's byte order."""
    assert bytes.fromhex("0d02004d0a") in Endpoint("10.77.0.2", 8443).encode()


@pytest.mark.parametrize(
    "message",
    [
        CertifyRequest("a.test", b"token", b"csr"),
        CertifyResponse(b"leaf", (b"one", b"two"), 1_800_000_000),
        Profile(),
        Profile(True, Endpoint("10.77.0.2", 8443, "b.test", opaque=True, transport_port=4143)),
        Profile(False, Endpoint("fd00::2", 1)),
        ServerPolicy("detect", "any", 7),
        ServerPolicy("detect", "authenticated", 1, "server", "db"),
        ServerPolicy("opaque", "none", 0),
    ],
)
def test_messages_come_back_as_they_were(
    message: CertifyRequest | CertifyResponse | Profile | ServerPolicy,
) -> None:
    assert type(message).decode(message.encode()) == message


@pytest.mark.parametrize("data", [b"\x0a", b"\x0a\x05abc", b"\x0b", b"\xff" * 11])
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"truncated|wire type|bad number"):
        decode(data)


def test_the_rules_are_linkerds_in_its_order() -> None:
    rules = Rules(skip_inbound=("1-2", *map(str, range(9000, 9014))), skip_subnets=("10.1.0.0/16",))
    assert [rule.split(" -m comment")[0].removeprefix("-p tcp ") for rule in rules.redirect()] == [
        "-m multiport --dports 4190,4191,1:2,9000,9001,9002,9003,9004,9005,9006,9007,9008,9009,9010",
        "-m multiport --dports 9011,9012,9013",
        "-s 10.1.0.0/16",
        "-p tcp",
    ]
    assert [rule.rpartition("-j ")[2] for rule in rules.output()] == [
        "RETURN",
        "RETURN",
        "RETURN",
        "REDIRECT --to-port 4140",
    ]
    assert next(rules.output()).startswith("-m owner --uid-owner 2102 ")
