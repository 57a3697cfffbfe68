# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys

FOREIGN = ("grpc", "xds_server", "manifests", "envoy", "betterproto2", "OpenSSL", "pydantic")


def test_the_worker_loads_no_coordinator_and_no_grpc_core() -> None:
    code = f"import enclave_proxy.__main__, sys; print([name for name in {FOREIGN!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_worker_loads_nothing_that_paints_tracebacks() -> None:
    code = "import enclave_proxy.__main__, sys; print([name for name in ('rich', 'pygments') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_it_runs_as_a_module_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-m", "enclave_proxy", "run"], capture_output=True, text=True, env={})
    assert done.returncode == 2
    assert done.stderr == (
        "marblemesh proxy: EDG_MARBLE_TYPE (--marble-type): is not set; give the Marble's name in the manifest\n"
    )
