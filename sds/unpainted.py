# SPDX-License-Identifier: Apache-2.0
"""structlog without what it would paint tracebacks with. Importing this loads it.

Where rich and pygments are installed it loads them: 6 MB and 0.1 s in each process for what `sds.logs` never does. It
does without them where they cannot be imported, so it is loaded here, before anything else does, while that is so.
"""

from __future__ import annotations

import sys
from importlib import import_module

_PAINTER = "rich"

if _PAINTER not in sys.modules:
    sys.modules[_PAINTER] = None  # type: ignore[assignment]  # how the import system writes "there is no such module"
    try:
        import_module("structlog")
    finally:
        del sys.modules[_PAINTER]
