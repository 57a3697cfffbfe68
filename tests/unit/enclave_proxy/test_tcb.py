# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys

import pytest

FOREIGN = ("grpc", "xds_server", "manifests", "envoy", "betterproto2", "OpenSSL", "pydantic", "typer")
PAINTERS = ("rich", "pygments")
# Until it knows its settings and refuses them: the command line is read by then.
RUN = """
import sys
from enclave_proxy.__main__ import main
sys.argv = ["marblemesh", "proxy", "run", "--marble-type", "web", "--drain", "soon", "--simulation", "--", "true"]
try:
    main()
finally:
    print([name for name in {names!r} if name in sys.modules])
"""


@pytest.mark.parametrize("names", [FOREIGN, PAINTERS], ids=["of others", "that paints tracebacks"])
def test_the_worker_loads_nothing(names: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-c", RUN.format(names=names)], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (2, "[]"), done.stderr
    assert "--drain" in done.stderr


def test_it_runs_as_a_module_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-m", "enclave_proxy", "run"], capture_output=True, text=True, env={})
    assert done.returncode == 2
    assert done.stderr == (
        "marblemesh proxy: EDG_MARBLE_TYPE (--marble-type): is not set; give the Marble's name in the manifest\n"
    )
