# SPDX-License-Identifier: Apache-2.0
"""Entry of the operator's verbs: the only reader of arguments and environment."""

from __future__ import annotations

import os
import sys

from marblemesh.cli.app import run


def main() -> None:
    sys.exit(run(sys.argv[1:], os.environ))


if __name__ == "__main__":
    main()
