# SPDX-License-Identifier: Apache-2.0
"""Members of a valid manifest that this version would have to ignore, and therefore refuses.

A manifest is a promise about what runs. One whose secrets are never generated, or whose users can never update it, is
not half kept but broken, and nobody would notice before it matters. Each entry goes when its feature comes.

Not here: `Infrastructures`, which MarbleRun accepts without enforcing; the Coordinator logs a warning for them.
"""

from __future__ import annotations

from collections.abc import Iterator

from manifests.errors import Problem
from manifests.model import Manifest, SealMode

_NOT_YET = "not supported by this version"


def unsupported(manifest: Manifest) -> Iterator[Problem]:
    """Everything in `manifest` that would have no effect, with its place."""
    yield from _named(manifest)
    yield from _config(manifest)
    yield from _packages(manifest)
    yield from _tls(manifest)
    yield from _templates(manifest)


def _named(manifest: Manifest) -> Iterator[Problem]:
    for member, names in (
        ("Secrets", manifest.secrets),
        ("Users", manifest.users),
        ("Roles", manifest.roles),
        ("RecoveryKeys", manifest.recovery_keys),
    ):
        for name in names:
            yield Problem(f"{member}.{name}", f"{member} are {_NOT_YET}")


def _config(manifest: Manifest) -> Iterator[Problem]:
    config = manifest.config
    if config.seal_mode not in (SealMode.DEFAULT, SealMode.DISABLED):
        yield Problem(
            "Config.SealMode",
            f'SealMode {config.seal_mode.value} is {_NOT_YET}, state is in memory only: leave it out or use "Disabled"',
        )
    for gate in sorted(config.feature_gates):
        yield Problem("Config.FeatureGates", f"feature gate {gate.value} is {_NOT_YET}")
    for member, wanted in (
        ("UpdateThreshold", config.update_threshold),
        ("RecoveryThreshold", config.recovery_threshold),
        ("RotateRootSecret", config.rotate_root_secret),
    ):
        if wanted:
            yield Problem(f"Config.{member}", f"{member} is {_NOT_YET}")


def _packages(manifest: Manifest) -> Iterator[Problem]:
    for name, package in manifest.packages.items():
        if package.snp is not None:
            yield Problem(f"Packages.{name}.SNP", f"SEV-SNP attestation is {_NOT_YET}")


def _tls(manifest: Manifest) -> Iterator[Problem]:
    for tag, entry in manifest.tls.items():
        for number, incoming in enumerate(entry.incoming):
            path = f"TLS.{tag}.Incoming[{number}]"
            if incoming.cert:
                yield Problem(f"{path}.Cert", f"serving a secret's certificate is {_NOT_YET}")
            if incoming.disable_client_auth:
                yield Problem(f"{path}.DisableClientAuth", f"DisableClientAuth is {_NOT_YET}")


def _templates(manifest: Manifest) -> Iterator[Problem]:
    for name, marble in manifest.marbles.items():
        for member, values in (("Files", marble.parameters.files), ("Env", marble.parameters.env)):
            for key, value in values.items():
                if value.templated:
                    yield Problem(
                        f"Marbles.{name}.Parameters.{member}.{key}",
                        f'templates are {_NOT_YET}: remove "{{{{" or set NoTemplates',
                    )
