# SPDX-License-Identifier: Apache-2.0
"""The `marblemesh` command: finds the program that the first word names and hands over.

Each program is imported only when it is asked for, so that `marblemesh proxy` inside an enclave loads no Coordinator
code, and the operator's verbs load neither.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the program that `sys.argv[1]` names; everything else is an operator's verb."""
    match sys.argv[1:2]:
        case ["coordinator"]:
            from xds_server.__main__ import main as program
        case ["proxy"] if sys.argv[2:3] != ["status"]:  # that only asks one that runs
            from enclave_proxy.__main__ import main as program
        case ["injector"]:
            from marblemesh.injector.__main__ import main as program
        case ["demo"]:
            from marblemesh.demo.__main__ import main as program
        case ["--version"]:
            from marblemesh.cli.__main__ import main as program

            sys.argv[1] = "version"
        case _:
            from marblemesh.cli.__main__ import main as program
    program()


if __name__ == "__main__":
    main()
