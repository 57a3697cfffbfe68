# SPDX-License-Identifier: Apache-2.0
"""`make bench ARGS=name [flags]`: runs one benchmark; without a name it lists them.

A benchmark is a module here with a `main(arguments)` and a docstring that says what it measures against which peer.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path

BENCHMARKS = ("activation", "relay", "xds_fleet", "xds_scale")


def main() -> int:
    known = [m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if m.name in BENCHMARKS]
    match sys.argv[1:]:
        case [name, *arguments] if name in known:
            return int(importlib.import_module(f"bench.{name}").main(arguments))
        case [] | ["-h" | "--help"]:
            print("benchmarks (make bench ARGS=<name>):")
            for name in known:
                summary = (importlib.import_module(f"bench.{name}").__doc__ or "").splitlines()[0]
                print(f"  {name:12} {summary}")
            return 0
        case [name, *_]:
            print(f"no benchmark {name!r}; there are: {', '.join(known)}", file=sys.stderr)
            return 2
    return 2


if __name__ == "__main__":
    sys.exit(main())
