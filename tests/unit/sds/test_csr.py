# SPDX-License-Identifier: Apache-2.0
"""What a Marble may ask for, and with which words it is refused."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from sds.csr import CsrError, parse_csr
from tests.kit.pki import csr


def test_names_and_subject_are_taken_over() -> None:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "MarbleRun Marble")])
    names = [x509.DNSName("localhost"), x509.DNSName("*.web.example"), x509.IPAddress(ip_address("::1"))]
    request = parse_csr(csr(subject=subject, names=names))
    assert request.dns_names == ("localhost", "*.web.example")
    assert request.ip_addresses == (ip_address("::1"),)
    assert request.subject == subject


def test_a_request_may_ask_for_nothing() -> None:
    assert parse_csr(csr(names=[])).dns_names == ()


def test_names_of_other_kinds_are_not_taken_over() -> None:
    """A Marble cannot choose its own identity."""
    request = parse_csr(csr(names=[x509.UniformResourceIdentifier("spiffe://x/marble/db/1"), x509.DNSName("a")]))
    assert request.dns_names == ("a",)


@pytest.mark.parametrize("name", ["coordinator.marblemesh.internal", "MARBLEMESH.internal", "x.marblemesh.internal."])
def test_reserved_names_are_refused(name: str) -> None:
    with pytest.raises(CsrError, match="reserved"):
        parse_csr(csr(names=[x509.DNSName(name)]))


@pytest.mark.parametrize(
    "name", ["", "*", "a b", "a..b", "-a", "a*b", "*.*.a", "a\n", "a" * 64, ".".join(["a" * 63] * 4)]
)
def test_what_is_no_dns_name_is_refused(name: str) -> None:
    with pytest.raises(CsrError, match="parsing CSR: "):
        parse_csr(csr(names=[x509.DNSName(name)]))


def test_a_network_is_no_address() -> None:
    with pytest.raises(CsrError, match="parsing CSR: "):
        parse_csr(csr(names=[x509.IPAddress(ip_network("10.0.0.0/8"))]))


def test_a_broken_signature_is_named() -> None:
    der = bytearray(csr())
    der[-1] ^= 1
    with pytest.raises(CsrError, match=r"^signature over CSR is invalid"):
        parse_csr(bytes(der))


@pytest.mark.parametrize("der", [b"", b"junk", csr() + b"\0", csr()[:-1]])
def test_what_cannot_be_parsed_is_named(der: bytes) -> None:
    with pytest.raises(CsrError, match=r"^parsing CSR: "):
        parse_csr(der)


def test_a_name_of_a_type_that_no_name_has_is_refused() -> None:
    """A country given as a bit string: cryptography raises TypeError for it. Found by fuzzing."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COUNTRY_NAME, "DE")])
    der = csr(subject=subject)
    text = bytes.fromhex("0603550406") + b"\x13\x02DE"
    assert text in der
    with pytest.raises(CsrError, match=r"^parsing CSR: "):
        parse_csr(der.replace(text, bytes.fromhex("0603550406") + b"\x03\x02\x00E"))


def test_size_and_number_are_bounded() -> None:
    with pytest.raises(CsrError, match="at most 16384"):
        parse_csr(bytes(16 * 1024 + 1))
    with pytest.raises(CsrError, match="more than 100 names"):
        parse_csr(csr(names=[x509.DNSName(f"n{i}") for i in range(101)]))
    many = x509.Name([x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, str(i)) for i in range(33)])
    with pytest.raises(CsrError, match="more than 32 attributes"):
        parse_csr(csr(subject=many))
