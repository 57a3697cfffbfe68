# SPDX-License-Identifier: Apache-2.0
"""Runs a fuzz target under atheris: coverage of all our code that is loaded, genuine inputs as the first corpus."""

from __future__ import annotations

import gc
import hashlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FunctionType

PACKAGES = ("enclave_proxy", "manifests", "marblemesh", "sds", "xds_server")


def run(fuzz_one: Callable[[bytes], None], seeds: Iterable[bytes] = ()) -> None:
    """Fuzz until libFuzzer's own flags in sys.argv say enough; its first folder there is the corpus."""
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed: 'make fuzz ARGS=<name>' does that")
    corpus = next((Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")), None)
    for seed in seeds if corpus is not None else ():
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    # Ours alone: instrumenting everything takes minutes, and other libraries' branches are not what is looked for.
    for found in gc.get_objects():
        if isinstance(found, FunctionType) and (found.__module__ or "").partition(".")[0] in PACKAGES:
            atheris.instrument_func(found)
    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
