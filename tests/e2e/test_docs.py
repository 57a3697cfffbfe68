# SPDX-License-Identifier: Apache-2.0
"""The guides do what they say: every `sh` block of a page is run, in order, in an empty folder, with free ports."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.kit.mesh import free_port
from tests.kit.programs import program

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# The ports that stand in the guides; each run has its own, so that it disturbs nobody.
PORTS = re.compile(r"\b(4433|2001|18000|9944|15090|15091|8080|8443|10000)\b")
# `set -e` does not look at a negated command.
NEGATED = re.compile(r"^! ([^'\n]*[^'\\\n])$", re.MULTILINE)
# The defaults that a guide relies on without writing them down.
DEFAULTS = {
    "EDG_COORDINATOR_CLIENT_ADDR": "localhost:4433",
    "EDG_COORDINATOR_MESH_ADDR": "localhost:2001",
    "EDG_COORDINATOR_XDS_ADDR": ":18000",  # an Envoy looks for localhost at ::1
    "EDG_MARBLE_COORDINATOR_ADDR": "localhost:2001",
    "EDG_MARBLE_XDS_ADDR": "localhost:18000",
}
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md") if BLOCK.search(path.read_text()))


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_guide_works(page: str) -> None:
    for name in ("curl", "openssl"):
        program(name)
    ports: dict[str, str] = {}

    def free(match: re.Match[str]) -> str:
        return ports.setdefault(match.group(), str(free_port()))

    blocks = BLOCK.findall((ROOT / "docs" / page).read_text())
    script = NEGATED.sub(r"if \1; then echo 'this was to fail: \1' >&2; exit 1; fi", PORTS.sub(free, "\n".join(blocks)))
    with TemporaryDirectory(prefix="mm-") as folder:
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # noqa: TID251
            "HOME": folder,
            "XDG_STATE_HOME": f"{folder}/s",
            "XDG_CONFIG_HOME": f"{folder}/c",
            **{name: PORTS.sub(free, value) for name, value in DEFAULTS.items()},
        }
        work = Path(folder) / "w"
        work.mkdir()
        with (Path(folder) / "log").open("w+") as log:
            shell = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", script],
                cwd=work,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                status: object = shell.wait(timeout=90)
            except subprocess.TimeoutExpired:
                status = "not finished after 90 s"
            finally:
                with suppress(ProcessLookupError):  # nothing was left running
                    os.killpg(shell.pid, signal.SIGKILL)
            log.seek(0)
            assert status == 0, f"{status}\n{log.read()}"


def test_the_readme_s_commands_exist() -> None:
    """What `make demo` and `make test` do is run by the other tests and by CI; here: that the Makefile has them."""
    named = set(re.findall(r"make (\w+)", (ROOT / "README.md").read_text()))
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named <= targets
    assert {"demo", "test"} <= named
