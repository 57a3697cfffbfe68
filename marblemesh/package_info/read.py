# SPDX-License-Identifier: Apache-2.0
"""The SIGSTRUCT of a package on disk: Gramine's `.sig`, an enclave in ELF, or the directory of an Occlum instance."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from marblemesh.package_info.elf import MAGIC, read_section
from marblemesh.package_info.errors import PackageInfoError
from marblemesh.package_info.sigstruct import HEADER, SIZE, Sigstruct, parse_sigstruct

# OpenEnclave, Edgeless RT and EGo; the SGX SDK and Occlum.
_SECTIONS = (".oeinfo", ".note.sgxmeta")
_OCCLUM = Path("build/lib/libocclum-libos.signed.so")


def read_package(path: Path) -> Sigstruct:
    """Read and verify. Raises PackageInfoError, and OSError if the file cannot be read."""
    if path.is_dir():
        if not (path / _OCCLUM).is_file():
            raise PackageInfoError(f"the directory has no {_OCCLUM}, so it is no Occlum instance that was built")
        path /= _OCCLUM
    with path.open("rb") as file:
        return parse_package(file)


def parse_package(file: BinaryIO) -> Sigstruct:
    """The same from an open file. Raises PackageInfoError."""
    start = file.read(SIZE + 1)
    if not start.startswith(MAGIC):
        if len(start) != SIZE:
            raise PackageInfoError(f"neither an ELF file nor a SIGSTRUCT (Gramine's .sig), which has {SIZE} bytes")
        return parse_sigstruct(start)
    section = read_section(file, _SECTIONS)
    if section is None:
        raise PackageInfoError(f"the ELF file has no section {' or '.join(_SECTIONS)}, so it is no enclave")
    # Where it lies in the section depends on the SDK's version; its 16 constant bytes do not.
    at = section.find(HEADER)
    if at < 0 or at + SIZE > len(section):
        raise PackageInfoError("the enclave is not signed")
    return parse_sigstruct(section[at : at + SIZE])
