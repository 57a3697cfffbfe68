# SPDX-License-Identifier: Apache-2.0
"""The CA of a Coordinator process, read from its sealed state as the Coordinator itself would: on a simulated machine
the enclave's sealing keys are the tests', too. With it a test can issue what a Coordinator never would."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from sds.ca import CertificateAuthority
from xds_server.attestation_choice import choose_attestation
from xds_server.config import CoordinatorConfig
from xds_server.file_ops import SystemFiles
from xds_server.startup import open_state


def ca_of(state: Path, platform: Path) -> CertificateAuthority:
    """`state`: its `--seal-dir`; `platform`: its simulated machine."""
    with TemporaryDirectory(prefix="mm-") as copy, ExitStack() as stack:
        shutil.copytree(state, copy, dirs_exist_ok=True)  # the Coordinator keeps its own locked
        env = {
            "EDG_COORDINATOR_SEAL_DIR": copy,
            "EDG_COORDINATOR_SIMULATION": "1",
            "EDG_SIMULATED_PLATFORM_DIR": str(platform),
        }
        config = CoordinatorConfig.from_env(env)
        return open_state(config, choose_attestation(config, env), SystemFiles(), stack).records.ca
