# SPDX-License-Identifier: Apache-2.0
"""What the `marblemesh` command does before a program runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

# aiohttp has such a context for everything that names no other.
CODE = """
import gc, ssl, sys
reads = ssl.SSLContext.set_default_verify_paths
from marblemesh.__main__ import _load
import marblemesh.__main__ as start
sys.argv = ["marblemesh", "{word}"]
seen = []
def load():
    seen.append(gc.isenabled())
    program = _load()
    return lambda: seen.append(gc.isenabled())
start._load = load
start.main()
from aiohttp import connector
print(seen, len(connector._SSL_CONTEXT_VERIFIED.get_ca_certs()), connector._SSL_CONTEXT_VERIFIED.verify_mode.name)
print(ssl.SSLContext.set_default_verify_paths is reads)
"""


@pytest.mark.parametrize("word", ["coordinator", "proxy", "status"])
def test_a_program_is_loaded_without_collections_and_trusts_no_public_authority(word: str) -> None:
    done = subprocess.run([sys.executable, "-c", CODE.format(word=word)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[False, True] 0 CERT_REQUIRED", "True"]
