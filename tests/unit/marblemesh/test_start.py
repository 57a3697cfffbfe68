# SPDX-License-Identifier: Apache-2.0
"""What the `marblemesh` command does before a program runs."""

from __future__ import annotations

import os
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


FUSED = """
import sys, marblemesh.__main__ as start
sys.argv = ["marblemesh", *sys.argv[1:]]
start.load()
import ssl
from aiohttp import connector
print(connector._SSL_CONTEXT_VERIFIED.cert_store_stats() == ssl.create_default_context().cert_store_stats())
"""


@pytest.mark.parametrize(
    ("arguments", "env"), [(("proxy", "run", "--fused"), {}), (("proxy", "run"), {"EDG_MARBLE_FUSED": "1"})]
)
def test_a_fused_app_s_aiohttp_trusts_whom_it_trusts_elsewhere(arguments: tuple[str, ...], env: dict[str, str]) -> None:
    environment = {**os.environ, **env}  # noqa: TID251 - a test's own
    command = [sys.executable, "-c", FUSED, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "True"
