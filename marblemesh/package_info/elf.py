# SPDX-License-Identifier: Apache-2.0
"""One section of a 64-bit little-endian ELF file, by name. Reads only what it needs: enclaves may have gigabytes."""

from __future__ import annotations

import struct
from typing import BinaryIO

from marblemesh.package_info.errors import PackageInfoError

MAGIC = b"\x7fELF"
_HEADER_SIZE = 64
_SECTION_SIZE = 64
# Linkers write some dozens; 4096 section headers are 256 KiB.
_MAX_SECTIONS = 4096
_MAX_NAMES = 256 * 1024
# Metadata of the SGX SDK has 20 KiB, OpenEnclave's 4 KiB.
_MAX_SECTION = 1024 * 1024
_NOBITS = 8


def read_section(file: BinaryIO, names: tuple[str, ...]) -> bytes | None:
    """The contents of the first section with one of these names; None if there is none. Raises PackageInfoError."""
    header = _read(file, 0, _HEADER_SIZE)
    if header[:6] != MAGIC + b"\x02\x01":
        raise PackageInfoError("no 64-bit little-endian ELF file, so no enclave")
    (offset,) = struct.unpack_from("<Q", header, 40)
    entry_size, count, names_index = struct.unpack_from("<HHH", header, 58)
    if entry_size != _SECTION_SIZE or not names_index < count <= _MAX_SECTIONS:
        raise PackageInfoError("the ELF file's section table is unusual or damaged")
    table = _read(file, offset, count * _SECTION_SIZE)
    sections = [struct.unpack_from("<IIQQQQ", table, index * _SECTION_SIZE) for index in range(count)]
    texts = _contents(file, sections[names_index], _MAX_NAMES)
    wanted = {name.encode() for name in names}
    for section in sections:
        if _name(texts, section[0]) in wanted and section[1] != _NOBITS:
            return _contents(file, section, _MAX_SECTION)
    return None


def _contents(file: BinaryIO, section: tuple[int, ...], limit: int) -> bytes:
    _, _, _, _, offset, size = section
    if size > limit:
        raise PackageInfoError(f"a section of the ELF file has {size} bytes, at most {limit} are expected")
    return _read(file, offset, size)


def _name(texts: bytes, start: int) -> bytes:
    end = texts.find(b"\0", start)
    return texts[start:end] if end >= 0 else b""


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    # A file offset is signed.
    if offset >= 1 << 63:
        raise PackageInfoError("the ELF file is damaged: it points behind its end")
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise PackageInfoError("the ELF file is cut off")
    return data
