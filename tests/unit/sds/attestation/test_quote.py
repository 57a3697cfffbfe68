# SPDX-License-Identifier: Apache-2.0
"""Reading quotes: every length must fit, and nothing may lie beside it."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sds.attestation.errors import AttestationError, Malformed, Unsupported
from sds.attestation.evidence import Evidence
from sds.attestation.quote import Quote, read_chain
from sds.attestation.tee import Tee
from tests.kit.platform import REPORT_DATA, lab

# The cryptography library warns of odd certificates (a negative serial, a country of 21 letters), but reads them.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SGX, TDX = lab().sgx().quote, lab().tdx().quote
TDX_V5 = lab().tdx(version=5, size=648).quote


@pytest.mark.parametrize("quote", [SGX, TDX, TDX_V5])
def test_a_quote_is_read_with_its_report_data_and_chain(quote: bytes) -> None:
    parsed = Quote.parse(quote)
    assert (parsed.report_data, len(parsed.pck_chain), parsed.debug) == (REPORT_DATA, 3, False)
    assert parsed.raw == quote


@pytest.mark.parametrize(("quote", "tee"), [(SGX, Tee.SGX), (TDX, Tee.TDX), (TDX_V5, Tee.TDX)])
def test_the_wire_form_is_read_back(quote: bytes, tee: Tee) -> None:
    evidence = Evidence.parse(quote)
    assert evidence == Evidence(tee, quote)
    assert Evidence.parse(evidence.to_wire()) == evidence


def test_sgx_travels_with_open_enclaves_header_and_tdx_without() -> None:
    assert Evidence.parse(SGX).to_wire() == struct.pack("<IIQ", 1, 2, len(SGX)) + SGX
    assert Evidence.parse(TDX).to_wire() == TDX


@pytest.mark.parametrize("quote", [SGX, TDX, TDX_V5])
def test_every_truncation_is_malformed(quote: bytes) -> None:
    for length in range(len(quote)):
        with pytest.raises(Malformed):
            Evidence.parse(quote[:length])


@pytest.mark.parametrize("quote", [SGX, TDX])
def test_zero_padding_is_cut_and_anything_else_refused(quote: bytes) -> None:
    assert Evidence.parse(quote + bytes(3000)).quote == quote
    with pytest.raises(Malformed, match="bytes follow the declared end"):
        Evidence.parse(quote + b"\0\0x")


def test_a_header_that_declares_another_length_is_refused() -> None:
    with pytest.raises(Malformed, match="Open Enclave header declares"):
        Evidence.parse(struct.pack("<IIQ", 1, 2, len(SGX) + 1) + SGX)
    with pytest.raises(Malformed, match="report type 1"):
        Evidence.parse(struct.pack("<IIQ", 1, 1, len(SGX)) + SGX)


def test_more_than_16_kib_are_refused_unread() -> None:
    with pytest.raises(Malformed, match="quote size: 1000000 bytes"):
        Evidence.parse(bytes(1_000_000))


def test_empty_evidence_is_malformed() -> None:
    with pytest.raises(Malformed, match="quote header"):
        Evidence.parse(b"")


@pytest.mark.parametrize(
    ("quote", "offset", "value", "what"),
    [
        (SGX, 0, b"\x02", "quote version"),
        (SGX, 0, b"\x06", "quote version"),
        (SGX, 0, b"\x04", "quote TEE"),  # SGX in a v4 quote
        (TDX, 0, b"\x03", "quote TEE"),
        (SGX, 2, b"\x03", "attestation key"),  # P-384
        (SGX, 4, b"\x01", "quote TEE"),
        (SGX, 12, b"\x00", "quoting enclave"),
        (TDX_V5, 48, b"\x01", "quote body"),
        (TDX_V5, 48, b"\x09", "quote body"),
    ],
)
def test_other_kinds_of_quotes_are_unsupported_by_name(quote: bytes, offset: int, value: bytes, what: str) -> None:
    with pytest.raises(Unsupported, match=what):
        Evidence.parse(quote[:offset] + value + quote[offset + 1 :])


def test_a_v5_body_size_that_is_not_its_types_is_malformed() -> None:
    with pytest.raises(Malformed, match="type 3 with 647 bytes"):
        Evidence.parse(TDX_V5[:50] + struct.pack("<I", 647) + TDX_V5[54:])


def test_text_between_the_certificates_of_a_quote_is_refused() -> None:
    at = SGX.index(b"-----END CERTIFICATE-----\n") + len(b"-----END CERTIFICATE-----")
    with pytest.raises(Malformed, match="something other than PEM"):
        Quote.parse(SGX[:at] + b"#" + SGX[at + 1 :])


def test_a_chain_has_one_to_eight_certificates() -> None:
    pem = lab().pki.root.pem.encode()
    assert len(read_chain(pem * 8, "chain")) == 8
    for bad in (pem * 9, b"", b"\n\0"):
        with pytest.raises(Malformed, match="expected 1 to 8"):
            read_chain(bad, "chain")


def test_a_certificate_that_is_none_is_malformed() -> None:
    with pytest.raises(Malformed, match="cannot be read"):
        read_chain(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "chain")


def test_a_quote_does_not_print_itself() -> None:
    assert REPORT_DATA.hex() not in repr(Evidence.parse(SGX))
    assert len(repr(Evidence.parse(SGX))) < 100


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_mutation_of_a_quote_breaks_the_parser(data: st.DataObject) -> None:
    quote = bytearray(data.draw(st.sampled_from([SGX, TDX, TDX_V5])))
    for _ in range(data.draw(st.integers(1, 4))):
        quote[data.draw(st.integers(0, len(quote) - 1))] = data.draw(st.integers(0, 255))
    del quote[data.draw(st.integers(0, len(quote))) :]
    with suppress(AttestationError):
        Evidence.parse(bytes(quote))


@given(st.binary(max_size=600))
def test_no_bytes_break_the_parser(blob: bytes) -> None:
    with pytest.raises(AttestationError):
        Evidence.parse(blob)
