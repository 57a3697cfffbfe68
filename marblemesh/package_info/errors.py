# SPDX-License-Identifier: Apache-2.0
"""The package's one exception."""

from __future__ import annotations


class PackageInfoError(Exception):
    """The file is no signed enclave, or its signature does not fit. `str()` is one line."""
