# SPDX-License-Identifier: Apache-2.0
"""From uploaded bytes to a manifest that this Coordinator will keep, or a refusal that names what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator

from manifests.errors import ManifestError, ManifestShapeError, ManifestSyntaxError, Problem
from manifests.model import Manifest, Secret, SecretType
from manifests.parse import parse
from sds.ca import CertificateAuthority
from xds_server.activation import oversized
from xds_server.errors import ManifestRefused
from xds_server.snapshot_check import check
from xds_server.snapshot_tls import SnapshotError
from xds_server.unsupported import unsupported

# A manifest of 16 MiB holds 3 000 files of 5 KiB; real ones are below 100 KiB.
MAX_MANIFEST = 16 * 1024 * 1024
# Anybody may set the first manifest, so what it makes us generate is bounded. All other changes wait meanwhile: an RSA
# key of 2048 bits takes 0.05 s to find, growing with the fourth power of its size, any other certificate 0.001 s; 30 s
# are 600 RSA keys of 2048 bits or 37 of 4096. And everything is kept in memory and written whole at each change: no
# Marble can be given more than 3 MiB of it anyway.
_RSA_SECONDS = 0.05
_CERTIFICATE_SECONDS = 0.001
MAX_SECONDS = 30
MAX_GENERATED_BYTES = 16 * 1024 * 1024
_MAX_PROBLEMS = 20  # told to the client; a manifest with more is fixed from the top


def accepted(raw: bytes, ca: CertificateAuthority) -> Manifest:
    """A manifest that is well formed, has no member without effect and can be served under `ca`.

    Raises ManifestRefused in MarbleRun's words: `unmarshaling manifest: …` or `checking manifest: …`.
    """
    if len(raw) > MAX_MANIFEST:
        raise ManifestRefused(f"unmarshaling manifest: {len(raw)} bytes, at most {MAX_MANIFEST} are accepted")
    try:
        manifest = parse(raw)
    except ManifestSyntaxError as e:
        raise ManifestRefused(f"unmarshaling manifest: {e}") from e
    except ManifestShapeError as e:
        raise ManifestRefused(f"unmarshaling manifest: {_list(e.problems)}") from e
    except ManifestError as e:
        raise ManifestRefused(f"checking manifest: {_list(e.problems)}") from e
    problems = (*unsupported(manifest), *oversized(manifest), *_laborious(manifest))
    if problems:
        raise ManifestRefused(f"checking manifest: {_list(problems)}")
    try:
        check(manifest, ca.trust_domain)
    except SnapshotError as e:
        raise ManifestRefused(f"checking manifest: {e}") from e
    return manifest


def _laborious(manifest: Manifest) -> Iterator[Problem]:
    """Secrets that would take too long to generate, or too much room to keep."""
    made = [secret for secret in manifest.secrets.values() if not secret.user_defined]
    seconds = sum(_seconds(secret) for secret in made)
    if seconds > MAX_SECONDS:
        text = f"certificates take about {seconds:.0f} s to generate, at most {MAX_SECONDS} s are accepted"
        yield Problem("Secrets", f"{text}: use cert-ecdsa instead of cert-rsa, or fewer")
    room = sum(secret.size // 8 for secret in made if secret.type is SecretType.SYMMETRIC_KEY)
    if room > MAX_GENERATED_BYTES:
        yield Problem("Secrets", f"symmetric keys of {room} bytes in all, at most {MAX_GENERATED_BYTES} are kept")


def _seconds(secret: Secret) -> float:
    match secret.type:
        case SecretType.CERT_RSA:
            return _RSA_SECONDS * (secret.size / 2048) ** 4
        case SecretType.CERT_ECDSA | SecretType.CERT_ED25519:
            return _CERTIFICATE_SECONDS
        case _:
            return 0.0


def _list(problems: tuple[Problem, ...]) -> str:
    shown = "; ".join(str(problem) for problem in problems[:_MAX_PROBLEMS])
    more = len(problems) - _MAX_PROBLEMS
    return f"{shown}; and {more} more" if more > 0 else shown
