# SPDX-License-Identifier: Apache-2.0
"""The kinds of trusted execution environment whose evidence is understood."""

from __future__ import annotations

from enum import StrEnum


class Tee(StrEnum):
    """A kind of TEE; the values appear in file names, JSON and certificates."""

    SGX = "sgx"
    TDX = "tdx"
