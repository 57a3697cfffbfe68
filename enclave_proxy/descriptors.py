# SPDX-License-Identifier: Apache-2.0
"""How many descriptors this process may have: as many as it is allowed, since every connection costs two.

The soft limit is 1024 on most machines, for programs that call select(): with it a worker would serve 500 connections.
The app gets it back, since the app may be one of those.
"""

from __future__ import annotations

import resource
from contextlib import suppress


def take_all() -> int:
    """Raise the soft limit to the hard one. Gives what it was."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # the kernel's own limit may be lower than what is said to be allowed
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft
