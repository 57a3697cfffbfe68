# SPDX-License-Identifier: Apache-2.0
"""The `marblemesh` command: finds the program that the first word names and hands over.

Each program is imported only when it is asked for, so that `marblemesh proxy` inside an enclave loads no Coordinator
code, and the operator's verbs load neither.
"""

from __future__ import annotations

import gc
import os
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext


def main() -> None:
    """Run the program that `sys.argv[1]` names; everything else is an operator's verb."""
    gc.disable()  # nothing that imports make is garbage: looking for some is a seventh of the time until a program runs
    program = load()
    gc.freeze()
    gc.enable()
    program()


def load() -> Callable[[], None]:
    """The program that `sys.argv` names, imported."""
    # A fused app shares aiohttp with the worker, and may well have to trust the public authorities.
    fused = "--fused" in sys.argv or bool(os.environ.get("EDG_MARBLE_FUSED"))
    with nullcontext() if fused else _without_public_anchors():
        return _load()


@contextmanager
def _without_public_anchors() -> Iterator[None]:
    """aiohttp reads the machine's certificate authorities twice when it is imported, 40 ms that are a tenth of a start.

    Nothing here trusts them unless it says so (see `sds.attestation.pccs`), so aiohttp's own contexts trust nobody.
    """
    read = ssl.SSLContext.set_default_verify_paths
    ssl.SSLContext.set_default_verify_paths = _read_nothing  # type: ignore[method-assign]
    try:
        yield
    finally:
        ssl.SSLContext.set_default_verify_paths = read  # type: ignore[method-assign]


def _read_nothing(self: ssl.SSLContext) -> None:
    pass


def _load() -> Callable[[], None]:
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
    return program


if __name__ == "__main__":
    main()
