# SPDX-License-Identifier: Apache-2.0
"""Fuzz target: whatever the bytes, `parse` answers with a Manifest or a ManifestError, and its value is consistent.

python tests/fuzz/fuzz_manifest.py      under atheris: make fuzz
"""

from __future__ import annotations

import hashlib

from manifests.errors import ManifestError
from manifests.parse import parse
from tests.fuzz.driver import run


def fuzz_one(data: bytes) -> None:
    try:
        manifest = parse(data)
    except ManifestError as error:
        if not error.problems or not str(error).isprintable():
            raise AssertionError(f"refused without a printable reason: {error!r}") from error
        return
    if manifest.fingerprint != hashlib.sha256(data).hexdigest():
        raise AssertionError("the fingerprint is of other bytes")
    for marble in manifest.marbles.values():
        if marble.package not in manifest.packages or not set(marble.tls) <= set(manifest.tls):
            raise AssertionError("a Marble refers to what is not there")


if __name__ == "__main__":
    run(fuzz_one)
