# SPDX-License-Identifier: Apache-2.0
"""A child must not outlive its parent, not even when the parent is killed by a signal that it cannot catch.

The worker ties its app to itself with a tiny program between fork and exec; the demo ties its processes the same way.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from enclave_proxy import exec_app


def tied_to_us(argv: Sequence[str]) -> tuple[str, ...]:
    """The command that becomes `argv` (its program given by an absolute path), and dies when this process does."""
    return (sys.executable, "-I", "-S", exec_app.__file__, str(os.getpid()), argv[0], *argv)
