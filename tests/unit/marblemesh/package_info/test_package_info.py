# SPDX-License-Identifier: Apache-2.0
"""What a signed enclave says about itself is read only if its signature fits, from every kind of package."""

from __future__ import annotations

import hashlib
import io
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marblemesh.package_info import PackageInfoError, Sigstruct, parse_sigstruct, read_package
from marblemesh.package_info.read import parse_package
from tests.fuzz.fuzz_sigstruct import SEEDS, fuzz_one
from tests.kit.sigstruct import UNIQUE_ID, elf, modulus, sigstruct

GOOD = sigstruct()
EXPECTED = Sigstruct(UNIQUE_ID, hashlib.sha256(modulus()).digest(), 7, 3, debug=False)
SIGNED = [*range(16, 24), *range(40, 128), *range(900, 1028)]


def test_a_sigstruct_is_read() -> None:
    assert parse_sigstruct(GOOD) == EXPECTED
    assert parse_sigstruct(sigstruct(debug=True, product_id=65535)).debug


@pytest.mark.parametrize(
    "data",
    [GOOD, elf(bytes(144) + GOOD + bytes(9)), elf(bytes(88) + GOOD, ".note.sgxmeta")],
    ids=["gramine", "openenclave", "sgx sdk"],
)
def test_every_kind_of_package_is_read(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "package"
    path.write_bytes(data)
    assert read_package(path) == EXPECTED


def test_an_occlum_instance_is_read(tmp_path: Path) -> None:
    library = tmp_path / "build" / "lib" / "libocclum-libos.signed.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(elf(GOOD, ".note.sgxmeta"))
    assert read_package(tmp_path) == EXPECTED


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SIGNED), st.integers(1, 255))
def test_no_signed_byte_can_be_changed(at: int, change: int) -> None:
    data = bytearray(GOOD)
    data[at] ^= change
    with pytest.raises(PackageInfoError, match="signature in the SIGSTRUCT is wrong"):
        parse_sigstruct(bytes(data))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "neither an ELF file nor a SIGSTRUCT .*, which has 1808 bytes"),
        (GOOD + b"\0", "neither an ELF file nor a SIGSTRUCT .*, which has 1808 bytes"),
        (bytes(1808), "its header is another one"),
        (sigstruct(signed=False), "signature in the SIGSTRUCT is wrong"),
        (GOOD[:128] + bytes(384) + GOOD[512:], "holds no RSA-3072 key"),
        (GOOD[:128] + bytes(383) + b"\xff" + GOOD[512:], "holds no RSA-3072 key"),
        (GOOD[:512] + b"\1\0\1\0" + GOOD[516:], "holds no RSA-3072 key"),
        (elf(b"", ".text"), "no section .oeinfo or .note.sgxmeta"),
        (elf(bytes(2000)), "the enclave is not signed"),
        (elf(bytes(144) + GOOD[:-1]), "the enclave is not signed"),
        (elf(GOOD)[:-1], "cut off"),
        (elf(GOOD, sections=0), "unusual or damaged"),
        (elf(GOOD, sections=5000), "unusual or damaged"),
        (b"\x7fELF\x01\x01" + bytes(60), "no 64-bit little-endian ELF file"),
        (b"\x7fELF", "cut off"),
    ],
)
def test_what_is_no_signed_enclave_is_named(data: bytes, text: str) -> None:
    with pytest.raises(PackageInfoError, match=text):
        parse_package(io.BytesIO(data))


@pytest.mark.parametrize(
    ("offset", "size", "text"),
    [(1 << 63, 8, "behind its end"), (1 << 40, 8, "cut off"), (0, 1 << 40, "at most 1048576 are expected")],
)
def test_a_section_elsewhere_is_refused(offset: int, size: int, text: str) -> None:
    data = bytearray(elf(GOOD))
    struct.pack_into("<QQ", data, len(data) - 64 + 24, offset, size)
    with pytest.raises(PackageInfoError, match=text):
        parse_package(io.BytesIO(bytes(data)))


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good package with a few bytes changed, cut out or doubled."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    at, size = draw(st.integers(0, len(data))), draw(st.integers(0, 64))
    match draw(st.sampled_from(["keep", "cut", "double", "end"])):
        case "cut":
            del data[at : at + size]
        case "double":
            data[at:at] = data[at : at + size]
        case "end":
            del data[at:]
    return bytes(data)


@settings(max_examples=500, deadline=None)
@given(st.one_of(mutated(), st.binary(max_size=300)))
def test_nothing_breaks_the_parser(data: bytes) -> None:
    fuzz_one(data)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_seeds_pass(seed: bytes) -> None:
    fuzz_one(seed)
