# SPDX-License-Identifier: Apache-2.0
"""Fuzz target: a package on disk, which somebody sent us: a SIGSTRUCT, or an ELF file with one in a section.

`python -m tests.fuzz.fuzz_sigstruct` runs it under atheris, where that is installed; the unit tests run it over
mutations.
"""

from __future__ import annotations

import io

from marblemesh.package_info import PackageInfoError
from marblemesh.package_info.read import parse_package
from tests.fuzz.driver import run
from tests.kit.sigstruct import elf, modulus, sigstruct

SEEDS = (
    sigstruct(),
    elf(bytes(144) + sigstruct(debug=True) + bytes(40)),
    elf(bytes(88) + sigstruct(), ".note.sgxmeta"),
    elf(b"", ".text"),
)


def fuzz_one(data: bytes) -> None:
    """Any bytes are refused in one line, or are what the one signer that we know has signed."""
    try:
        found = parse_package(io.BytesIO(data))
    except PackageInfoError as e:
        if "\n" in str(e) or len(str(e)) > 200:
            raise AssertionError("not one short line") from e
        return
    if modulus() not in data or len(found.unique_id) != 32:
        raise AssertionError("somebody else's signature was accepted")


if __name__ == "__main__":
    run(fuzz_one, SEEDS)
