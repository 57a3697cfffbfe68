# SPDX-License-Identifier: Apache-2.0
"""Members of a valid manifest that this version would have to ignore, and therefore refuses.

A manifest is a promise about what runs. One whose state is sealed in another way than it says, or whose templates mean
something else here, is not half kept but broken, and nobody would notice before it matters. Each entry goes when its
feature comes.

Not here: `Infrastructures`, which MarbleRun accepts without enforcing; the Coordinator logs a warning for them.
"""

from __future__ import annotations

from collections.abc import Iterator

from manifests.errors import Problem
from manifests.model import FeatureGate, Manifest
from xds_server.parameters import check_templates

_NOT_YET = "not supported by this version"


def unsupported(manifest: Manifest) -> Iterator[Problem]:
    """Everything in `manifest` that would have no effect, with its place."""
    yield from _config(manifest)
    yield from _packages(manifest)
    yield from check_templates(manifest)


def _config(manifest: Manifest) -> Iterator[Problem]:
    if FeatureGate.AZURE_HSM_SEALING in manifest.config.feature_gates:
        yield Problem("Config.FeatureGates", f"feature gate {FeatureGate.AZURE_HSM_SEALING.value} is {_NOT_YET}")


def _packages(manifest: Manifest) -> Iterator[Problem]:
    for name, package in manifest.packages.items():
        if package.snp is not None:
            yield Problem(f"Packages.{name}.SNP", f"SEV-SNP attestation is {_NOT_YET}")
