# SPDX-License-Identifier: Apache-2.0
"""A file descriptor for every worker, at both ends."""

from __future__ import annotations

import resource


def raise_open_files() -> int:
    """As many as this process may have; returns how many."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most
