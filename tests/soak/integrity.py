# SPDX-License-Identifier: Apache-2.0
"""No byte lost, changed or out of order: random data each way through two relays at once, hashed at both ends, on 1, 10
and 100 connections, while the identities of both relays are replaced every second.

    python -m tests.soak.integrity                     1 GB each way for each number of connections
    python -m tests.soak.integrity --megabytes 100

Ends with status 1 if one hash differs or one connection was refused or did not end cleanly.
"""

from __future__ import annotations

import argparse
import sys
import time

import uvloop

from sds import logs
from tests.kit.integrity import through_two_relays


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.integrity", description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=1000, help="each way, for each of the three (default 1000)")
    arguments = parser.parse_args()
    logs.configure("error", "console")
    failed = False
    for connections in (1, 10, 100):
        started = time.monotonic()
        report = uvloop.run(through_two_relays(connections, arguments.megabytes * 1_000_000, 1.0))
        failed = failed or report.damaged > 0
        print(f"{connections} connections, {time.monotonic() - started:.0f} s: {report}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
